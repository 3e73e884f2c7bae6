//! The steps of the demo: three countries exchange keys through a gateway that runs, and every step compares what happened
//! with what should have.

use std::{io::Write, sync::Arc};

use chrono::NaiveDate;
use efgs_client::{Download, Format};
use efgs_protocol::{
    bundle::Bundle,
    canonical::CanonicalKeys,
    certificate::CertificateType,
    key::{DiagnosisKey, KeyBatch},
    media::{MediaType, SUPPORTED},
    wire,
};
use efgs_test_ca::Request;

use super::{
    folder::{Actor, Folder},
    report::{Report, check},
    values::{answer, by_origin, concat, day_name, fingerprint, fresh_keys, next, upload_tag},
};
use crate::{cli::certificate, server::App, store::BatchRecord};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Lets everybody in whose bundle lies in the folder.
pub(super) async fn onboard<W: Write>(report: &mut Report<W>, folder: &Folder, app: &App) -> Result<()> {
    report.part("Trust")?;
    let (anchor, bundles) = (folder.anchor()?, folder.bundles()?);
    let signed = bundles.iter().filter(|bundle| bundle.verify(&anchor).is_ok()).count();
    report.step(
        "The operator signs the countries' certificates",
        format_args!("{signed} signed"),
        "Three per country, with the trust anchor's key, which stays offline.",
        [check("signed certificates", bundles.len(), signed)],
    )?;
    for bundle in &bundles {
        certificate::import_bundle(app, bundle).await?;
    }
    let now = app.clock.now();
    crate::trust::load(&app.trust, &app.store).await?;
    let registry = app.trust.registry()?;
    let active =
        |bundle: &&Bundle| registry.active(bundle.certificate.thumbprint(), bundle.kind, now).is_ok();
    let active = bundles.iter().filter(active).count();
    report.step(
        "The gateway imports them",
        format_args!("{active} active"),
        "It verifies the anchor's signatures now, and at every later reading.",
        [check("active certificates", bundles.len(), active)],
    )?;
    Ok(())
}

/// A gateway that runs, and who uses it.
pub(super) struct Steps<'a, W> {
    pub(super) report: &'a mut Report<W>,
    pub(super) folder: &'a Folder,
    pub(super) app: &'a Arc<App>,
    pub(super) url: &'a str,
    /// Today, in UTC.
    pub(super) date: NaiveDate,
    /// What makes the upload tags of this run different from those of earlier ones.
    pub(super) run: String,
}

impl<W: Write> Steps<'_, W> {
    /// From the first upload to the audit.
    pub(super) async fn run(&mut self) -> Result<()> {
        let actor = |country| self.folder.actor(country, self.url);
        let (de, nl, be) = (actor("DE")?, actor("NL")?, actor("BE")?);
        let (de_keys, nl_keys, be_keys) = (
            fresh_keys(de.country, self.date, 5)?,
            fresh_keys(nl.country, self.date, 3)?,
            fresh_keys(be.country, self.date, 4)?,
        );

        self.report.part("Uploads")?;
        let why = "Signed by Germany; the gateway rebuilds the signed bytes from the keys.";
        self.upload("DE uploads 5 keys as protobuf", why, &de, Format::Protobuf, &de_keys, 5).await?;
        let why = "Every downloader chooses its own format.";
        self.upload("NL uploads 3 keys as JSON", why, &nl, Format::Json, &nl_keys, 8).await?;
        let why = "All keys are stored in one transaction, or none. Each key is encrypted.";
        self.upload("BE uploads 4 keys as protobuf", why, &be, Format::Protobuf, &be_keys, 12).await?;
        let why = "Nothing is stored twice: if an answer is lost, a retry is safe.";
        self.upload("BE sends the same upload again", why, &be, Format::Protobuf, &be_keys, 12).await?;

        self.report.part("A batch")?;
        let first = self
            .form(
                "The gateway forms a batch",
                "It contains whole uploads in their order, and never changes.",
                3,
                12,
            )
            .await?;
        let download = fetch(&be, self.date, &first.id.to_string()).await?;
        let expected = concat(&[&de_keys, &nl_keys]);
        self.report.step(
            "BE downloads it",
            by_origin(&download.keys),
            "Its own 4 keys are omitted. Every field of the others is as it was sent.",
            [
                check("keys", fingerprint(&expected), fingerprint(&download.keys)),
                check("next batch", "none yet", next(&download, &[])),
            ],
        )?;

        let de_more = self.mistakes(&de, &nl, &de_keys, &nl_keys).await?;

        self.report.part("The chain")?;
        let second = self
            .form("The gateway forms the next batch", "Rejected uploads have left no trace in it.", 1, 2)
            .await?;
        let records = [first, second];
        let download = fetch(&be, self.date, &records[0].id.to_string()).await?;
        self.report.step(
            "BE asks for the first batch again",
            format_args!("next is {}", day_name(&records[1])),
            "The link is updated: a reader at the end of the chain finds it.",
            [check("next batch", records[1].id, next(&download, &records))],
        )?;
        let why = "From batch to batch, until nextBatchTag says null.";
        let expected = [concat(&[&de_keys, &nl_keys]), de_more.clone()];
        let be_chain = self.follow("BE follows the chain", why, &be, Format::Protobuf, &expected).await?;
        let why = "The same as JSON, whatever the others uploaded.";
        let expected = [concat(&[&de_keys, &be_keys]), de_more.clone()];
        let nl_chain = self.follow("NL follows the chain", why, &nl, Format::Json, &expected).await?;
        let why = "The second batch has only Germany's own keys, so it comes empty.";
        let expected = [concat(&[&nl_keys, &be_keys]), KeyBatch::new()];
        let de_chain = self.follow("DE follows the chain", why, &de, Format::Protobuf, &expected).await?;

        self.audit(&[(&be, be_chain), (&nl, nl_chain), (&de, de_chain)]).await?;
        self.at_rest(&[&de_keys, &nl_keys, &be_keys, &de_more])
    }

    async fn upload(
        &mut self,
        title: &str,
        why: &str,
        actor: &Actor,
        format: Format,
        keys: &KeyBatch,
        waiting: u64,
    ) -> Result<()> {
        let outcome = actor
            .gateway
            .upload(&upload_tag(actor.country, self.date, &self.run, 1)?, format, keys, &actor.signer)
            .await;
        let keys = self.app.store.pending().await?.keys;
        let checks = [answer("201", &outcome), check("keys that wait", waiting, keys)];
        Ok(self.report.step(title, format_args!("201, {keys} keys wait"), why, checks)?)
    }

    async fn form(&mut self, title: &str, why: &str, uploads: usize, keys: u64) -> Result<BatchRecord> {
        let formed = self.app.batching.form_now().await?;
        let [batch] = &formed[..] else {
            return Err(format!("the gateway formed {} batches instead of one", formed.len()).into());
        };
        let result = format!("{}, {} keys", day_name(batch), batch.amount());
        let checks = [check("uploads", uploads, batch.uploads.len()), check("keys", keys, batch.amount())];
        self.report.step(title, result, why, checks)?;
        Ok(batch.clone())
    }

    /// What the gateway refuses; returns the keys that it accepts in the end.
    async fn mistakes(
        &mut self,
        de: &Actor,
        nl: &Actor,
        de_keys: &KeyBatch,
        nl_keys: &KeyBatch,
    ) -> Result<KeyBatch> {
        self.report.part("Errors and attacks")?;
        let new = fresh_keys(de.country, self.date, 2)?;
        let mixed: KeyBatch = [new.get(0), de_keys.get(0), new.get(1)].into_iter().collect();
        let tag = upload_tag(de.country, self.date, &self.run, 2)?;
        let outcome = de.gateway.upload(&tag, Format::Protobuf, &mixed, &de.signer).await;
        self.report.step(
            "DE uploads 2 new keys and an old one",
            "207, nothing stored",
            "The signature covers the whole upload: a stored part could not be audited.",
            [
                answer("207, new: [0, 2], known: [1]", &outcome),
                check("keys that wait", 0, self.app.store.pending().await?.keys),
            ],
        )?;
        let outcome = de.gateway.upload(&tag, Format::Protobuf, &new, &de.signer).await;
        self.report.step(
            "DE uploads the 2 new ones, same tag",
            "201, 2 keys wait",
            "The 207 named them, and left the upload tag free.",
            [answer("201", &outcome), check("keys that wait", 2, self.app.store.pending().await?.keys)],
        )?;

        let signature = nl.signer.sign(&CanonicalKeys::of(nl_keys).signed_bytes())?;
        let mut altered = KeyBatch::new();
        for (index, key) in nl_keys.iter().enumerate() {
            let risk = key.transmission_risk_level - i32::from(index == 1);
            altered.push(DiagnosisKey { transmission_risk_level: risk, ..*key }, key.visited_countries());
        }
        let media = MediaType { format: Format::Json, version: SUPPORTED };
        let body = wire::encode(Format::Json, &altered);
        let outcome = nl
            .gateway
            .upload_signed(&upload_tag(nl.country, self.date, &self.run, 2)?, media, body, &signature)
            .await;
        self.report.step(
            "Somebody alters a key after NL signed it",
            "400, invalid signature",
            "One risk level differs by one, and the signature no longer verifies.",
            [
                answer("400 invalid-signature", &outcome),
                check("keys that wait", 2, self.app.store.pending().await?.keys),
            ],
        )?;

        let certificate = Request::new(CertificateType::Authentication, "NL").self_signed()?;
        let unregistered = self.folder.unregistered(self.url, certificate)?;
        let outcome = unregistered.download(self.date, None, Format::Json).await;
        self.report.step(
            "An unregistered caller poses as NL",
            "403, not registered",
            "Anyone can make a certificate for NL, but not the anchor's signature.",
            [answer("403 forbidden", &outcome)],
        )?;
        Ok(new)
    }

    /// Downloads all of today's batches one after the other; the last ones are this run's.
    async fn follow(
        &mut self,
        title: &str,
        why: &str,
        actor: &Actor,
        format: Format,
        expected: &[KeyBatch],
    ) -> Result<Vec<Download>> {
        let mut chain = Vec::new();
        let mut batch = actor.gateway.download(self.date, None, format).await?;
        while let Some(download) = batch {
            batch = match &download.next_batch_tag {
                Some(tag) => actor.gateway.download(self.date, Some(tag), format).await?,
                None => None,
            };
            chain.push(download);
        }
        let own = chain.split_off(chain.len().saturating_sub(expected.len()));
        let prints = |batches: &mut dyn Iterator<Item = &KeyBatch>| {
            batches.map(fingerprint).collect::<Vec<_>>().join(", then ")
        };
        let check = check(
            "keys",
            prints(&mut expected.iter()),
            prints(&mut own.iter().map(|download| &download.keys)),
        );
        let amounts: Vec<_> = own.iter().map(|download| by_origin(&download.keys)).collect();
        self.report.step(title, amounts.join(", then "), why, [check])?;
        Ok(own)
    }
}

/// One batch, as protobuf; it is an error if it is not there.
async fn fetch(actor: &Actor, date: NaiveDate, tag: &str) -> Result<Download> {
    let download = actor.gateway.download(date, Some(tag), Format::Protobuf).await?;
    Ok(download.ok_or_else(|| format!("{} was told that there is no batch {tag}", actor.country))?)
}
