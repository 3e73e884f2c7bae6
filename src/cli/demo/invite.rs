//! Commands to try after the demo's steps.

use std::{error::Error, io::Write, sync::Arc};

use efgs_protocol::{canonical::CanonicalKeys, media::Format, wire};

use super::{
    Stage,
    folder::profile,
    quote,
    report::Report,
    values::{fresh_keys, run_id, upload_tag},
};
use crate::{config::ChainScope, store::BatchRecord};

/// Prints commands to paste. The files that they name are in the folder.
pub(super) async fn invite<W: Write>(report: &mut Report<W>, stage: &Stage) -> Result<(), Box<dyn Error>> {
    let Stage { folder, gateway, url } = stage;
    let date = gateway.app().clock.now().date_naive();
    let nl = folder.actor("NL", url)?;
    let keys = fresh_keys(nl.country, date, 3)?;
    let tag = upload_tag(nl.country, date, &run_id(), 1)?;
    folder.write("NL/upload.json", wire::encode(Format::Json, &keys))?;
    folder.write("NL/upload.signature", nl.signer.sign(&CanonicalKeys::of(&keys).signed_bytes())?)?;
    let chain = &gateway.app().chain;
    chain.refresh().await?;
    let tag_of = |batch: Option<Arc<BatchRecord>>| {
        batch.map_or_else(|| "BATCHTAG".to_owned(), |batch| batch.id.to_string())
    };
    let first = tag_of(chain.look(date, None, ChainScope::SinceDate).ok().map(|link| link.batch));
    let last = tag_of(chain.newest(1).pop());
    let path = quote(&folder.path().display().to_string());
    let admin = gateway.admin_address;

    let call = "curl -iw '\\n' --cacert server-ca.pem";
    let de = format!("{call} --cert DE/authentication.pem --key DE/authentication.key");
    let nl = format!("{call} --cert NL/authentication.pem --key NL/authentication.key");
    let efgs = |country: &str, command: &str| vec![format!("efgs --profile {} {command}", profile(country))];
    let json = "application/json; version=1.0";
    let download = format!("'{url}/diagnosiskeys/download/{date}'");
    let audit = format!("'{url}/diagnosiskeys/audit/download/{date}/{first}'");
    let upload = format!("--data-binary @NL/upload.json '{url}/diagnosiskeys/upload'");
    let signature = "batchSignature: $(cat NL/upload.signature)";

    report.part(&format!("The gateway keeps serving on {url} until Ctrl-C"))?;
    report.line("To try it, paste these into another terminal:")?;
    for (what, lines) in [
        ("Everything is in this folder", vec![format!("cd {path}")]),
        (
            "Germany downloads today's first batch",
            vec![de.clone(), format!("-H 'Accept: {json}' {download}")],
        ),
        ("… and audits who uploaded and who signed its keys", vec![de.clone(), audit]),
        (
            "The Netherlands upload 3 keys. Again: 201. With one digit changed in NL/upload.json: 400",
            vec![
                nl,
                format!("-H 'Content-Type: {json}' -H 'batchTag: {tag}'"),
                format!("-H \"{signature}\" {upload}"),
            ],
        ),
        (
            "The same with the backends' command efgs (cargo install --path crates/client): check NL's profile",
            efgs("NL", "doctor"),
        ),
        (
            "NL signs and uploads keys; keys that the gateway already has are not sent again",
            efgs("NL", "upload NL/upload.json"),
        ),
        ("DE downloads and verifies all batches that it does not have yet", efgs("DE", "download")),
        ("… and audits who signed", efgs("DE", &format!("audit {date} {first}"))),
        (
            "10 seconds later there is a new batch: see nextbatchtag",
            vec![de, format!("-H 'Accept: {json}' -H 'batchTag: {last}'"), download.clone()],
        ),
        ("A caller without a certificate is rejected", vec![call.to_owned(), download]),
        ("The operator checks the readiness", vec![format!("curl -iw '\\n' 'http://{admin}/health/ready'")]),
    ] {
        report.aside(format_args!("\n  # {what}"))?;
        report.line(format_args!("  {}", lines.join(" \\\n    ")))?;
    }
    report.line(format_args!("\nThe operator's page, in a browser: http://{admin}/"))?;
    report.line(format_args!("The API document: http://{admin}/swagger/"))?;
    Ok(())
}
