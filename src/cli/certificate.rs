//! `certificate …`: onboarding and revocation of certificates (spec §6.1.3).

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use efgs_protocol::{
    anchor::AnchorKey,
    bundle::Bundle,
    certificate::{Certificate, CertificateType, Rule, Thumbprint},
    country::Country,
};
use zeroize::Zeroizing;

use super::{ConfigFile, Outcome, clean, open_current, print, say};
use crate::{
    clock::Clock,
    health::days_left,
    intake::StoredCertificate,
    server::App,
    store::{Imported, NewCertificate},
    trust::{Registry, threshold},
};

#[derive(Debug, Subcommand)]
pub(super) enum CertificateCommand {
    /// Show a certificate and check it against each onboarding rule
    Inspect(InspectArgs),
    /// Sign a certificate with the trust anchor and write an onboarding bundle; offline
    Sign(SignArgs),
    /// Verify onboarding bundles and store them
    Import(ImportArgs),
    /// Show the registered certificates and their state
    List(ListArgs),
    /// Revoke a certificate for all its types
    Revoke(RevokeArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Authentication,
    Signing,
    Callback,
}

impl From<Kind> for CertificateType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Authentication => Self::Authentication,
            Kind::Signing => Self::Signing,
            Kind::Callback => Self::Callback,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway certificate inspect nl-signing.pem --type signing --country NL"
)]
pub(super) struct InspectArgs {
    /// PEM, DER or PKCS#12
    file: PathBuf,
    /// A file with the password of a PKCS#12
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The intended use; without it all types are checked
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<Kind>,
    /// The country that it must belong to
    #[arg(long, value_name = "CC")]
    country: Option<Country>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway certificate sign --anchor-cert anchor.pem --anchor-key anchor.key --country NL --type signing --in nl-signing.pem --out nl-signing.bundle\n\nNeeds no configuration, no database and no network. Rules: version, country, key-size, hash, validity, expired, not-yet-valid, usage."
)]
pub(super) struct SignArgs {
    /// The trust anchor's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    anchor_cert: PathBuf,
    /// The trust anchor's private key (PEM)
    #[arg(long, value_name = "FILE")]
    anchor_key: PathBuf,
    /// A file with the passphrase of the trust anchor's key
    #[arg(long, value_name = "FILE")]
    anchor_password_file: Option<PathBuf>,
    /// The country that may use the certificate
    #[arg(long, value_name = "CC")]
    country: Country,
    /// The permitted use
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Kind,
    /// The certificate: PEM, DER or PKCS#12
    #[arg(long = "in", value_name = "CERT")]
    input: PathBuf,
    /// A file with the password of a PKCS#12
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Where to write the onboarding bundle
    #[arg(long = "out", value_name = "BUNDLE")]
    output: PathBuf,
    /// Accept the certificate although it breaks this rule; repeatable
    #[arg(long, value_name = "RULE")]
    accept: Vec<Rule>,
    /// Who accepts it; recorded with the certificate
    #[arg(long, value_name = "NAME", env = "USER", default_value = "")]
    accepted_by: String,
    /// Why; recorded with the certificate
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway certificate import --config efgs.toml nl-*.bundle\n\nRunning gateways accept it within `trust.refresh`."
)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Onboarding bundles
    #[arg(required = true, value_name = "BUNDLE")]
    bundles: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  efgs-gateway certificate list --config efgs.toml")]
pub(super) struct ListArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  efgs-gateway certificate revoke --config efgs.toml 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n\nRunning gateways reject its owner within `trust.refresh`, also on open connections. A revocation cannot be undone."
)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// SHA-256 of the certificate's DER, as `certificate list` shows it
    thumbprint: Thumbprint,
}

pub(super) async fn run(command: CertificateCommand) -> Outcome {
    match command {
        CertificateCommand::Inspect(args) => inspect(&args),
        CertificateCommand::Sign(args) => sign(&args),
        CertificateCommand::Import(args) => import(&args).await,
        CertificateCommand::List(args) => list(&args).await,
        CertificateCommand::Revoke(args) => revoke(&args).await,
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    std::fs::read(path).map(Zeroizing::new).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn password(path: Option<&PathBuf>) -> Result<Option<Zeroizing<String>>, String> {
    let Some(path) = path else { return Ok(None) };
    let text =
        String::from_utf8(read(path)?.to_vec()).map_err(|_| format!("{} is not text", path.display()))?;
    let text = Zeroizing::new(text);
    Ok(Some(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())))
}

fn read_certificate(path: &Path, password_file: Option<&PathBuf>) -> Result<Certificate, String> {
    let password = password(password_file)?;
    Certificate::from_file_contents(&read(path)?, password.as_ref().map(|p| p.as_str())).map_err(|e| {
        let hint = if password.is_none()
            && matches!(e, efgs_protocol::certificate::CertificateError::PasswordNeeded)
        {
            "; give it with --password-file"
        } else {
            ""
        };
        format!("{}: {e}{hint}", path.display())
    })
}

fn inspect(args: &InspectArgs) -> Outcome {
    let certificate = read_certificate(&args.file, args.password_file.as_ref())?;
    let now = Clock::system().now();
    let kinds = match args.kind {
        Some(kind) => vec![kind.into()],
        None => vec![CertificateType::Authentication, CertificateType::Signing, CertificateType::Callback],
    };
    let judged: Vec<_> =
        kinds.iter().map(|kind| (*kind, certificate.check(args.country, *kind, now))).collect();
    let passed = judged.iter().any(|(_, findings)| findings.iter().all(|finding| finding.passed));
    if args.json {
        let rules = |findings: &[efgs_protocol::certificate::Finding]| -> Vec<_> {
            let rule = |f: &efgs_protocol::certificate::Finding| serde_json::json!({"rule": f.rule.as_str(), "passed": f.passed, "explanation": f.explanation});
            findings.iter().map(rule).collect()
        };
        let judged: serde_json::Map<_, _> = judged
            .iter()
            .map(|(kind, findings)| (kind.as_str().to_owned(), rules(findings).into()))
            .collect();
        say(serde_json::json!({
            "thumbprint": certificate.thumbprint(), "subject": certificate.subject(), "issuer": certificate.issuer(),
            "serial": certificate.serial(), "notBefore": certificate.not_before(), "notAfter": certificate.not_after(),
            "key": certificate.key_description(), "hash": certificate.hash_description(), "rules": judged,
        }))?;
    } else {
        print(describe(&certificate, &judged))?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(
    certificate: &Certificate,
    judged: &[(CertificateType, Vec<efgs_protocol::certificate::Finding>)],
) -> String {
    let day = |t: DateTime<Utc>| t.format("%Y-%m-%d %H:%M UTC");
    let mut lines = vec![
        format!("Subject     {}", clean(certificate.subject())),
        format!("Issuer      {}", clean(certificate.issuer())),
        format!("Serial      {}", clean(certificate.serial())),
        format!("Key         {}", certificate.key_description()),
        format!("Hash        {}", certificate.hash_description()),
        format!("Valid       {} to {}", day(certificate.not_before()), day(certificate.not_after())),
        format!("Thumbprint  {}", certificate.thumbprint()),
    ];
    for (kind, findings) in judged {
        lines.push(format!("\nAs {kind}"));
        for finding in findings {
            let mark = if finding.passed { "ok  " } else { "FAIL" };
            lines.push(format!("  {mark}  {:<14} {}", finding.rule, clean(&finding.explanation)));
        }
    }
    lines.join("\n") + "\n"
}

fn sign(args: &SignArgs) -> Outcome {
    let kind = CertificateType::from(args.kind);
    let certificate = read_certificate(&args.input, args.password_file.as_ref())?;
    let broken: Vec<_> = certificate
        .check(Some(args.country), kind, Clock::system().now())
        .into_iter()
        .filter(|f| !f.passed)
        .collect();
    let refused: Vec<_> =
        broken.iter().filter(|f| f.rule == Rule::Country || !args.accept.contains(&f.rule)).collect();
    if !refused.is_empty() {
        let list: Vec<_> =
            refused.iter().map(|f| format!("  {:<14} {}", f.rule, clean(&f.explanation))).collect();
        let advice = if refused.iter().any(|f| f.rule == Rule::Country) {
            "a certificate of another country is never accepted; ask for the correct one"
        } else {
            "ask the country for a better certificate, or waive a rule with --accept RULE"
        };
        return Err(format!(
            "{} is rejected because of these rules:\n{}\n{advice}",
            args.input.display(),
            list.join("\n")
        )
        .into());
    }
    let passphrase = password(args.anchor_password_file.as_ref())?;
    let anchor = AnchorKey::from_pem(
        &*read(&args.anchor_cert)?,
        &*read(&args.anchor_key)?,
        passphrase.as_ref().map(|p| p.as_str()),
    )?;
    let waived: Vec<Rule> = broken.iter().map(|f| f.rule).collect();
    let mut bundle = Bundle::sign(&anchor, args.country, kind, certificate, waived)?;
    if !bundle.waived.is_empty() {
        bundle.waived_by = args.accepted_by.clone();
        bundle.waived_because = args.reason.clone();
    }
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&args.output)?;
        file.write_all(bundle.to_string().as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| format!("cannot write {}: {e}", args.output.display()))?;
    let waived =
        if bundle.waived.is_empty() { String::new() } else { format!(", waived: {}", names(&bundle.waived)) };
    say(format!(
        "{} signed for {} as {}{waived}\n{}\nwritten to {}",
        clean(bundle.certificate.subject()),
        bundle.country,
        bundle.kind,
        bundle.certificate.thumbprint(),
        args.output.display()
    ))
}

/// A row's waived rules with who waived them and why, as far as that is known.
fn waiver(row: &StoredCertificate) -> String {
    let by = if row.waived_by.is_empty() { String::new() } else { format!(" by {}", row.waived_by) };
    let because =
        if row.waived_because.is_empty() { String::new() } else { format!(": {}", row.waived_because) };
    format!("waived {}{by}{because}", row.waived)
}

fn names(rules: &[Rule]) -> String {
    rules.iter().map(|rule| rule.as_str()).collect::<Vec<_>>().join(",")
}

async fn import(args: &ImportArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    // All are verified before the first is stored.
    let mut bundles = Vec::new();
    for path in &args.bundles {
        let fail = |reason: String| format!("{}: {reason}; nothing was imported", path.display());
        let text = String::from_utf8(read(path)?.to_vec()).map_err(|_| fail("it is not text".into()))?;
        let bundle: Bundle =
            text.parse().map_err(|e: efgs_protocol::bundle::BundleError| fail(e.to_string()))?;
        verify(&app, &bundle).map_err(fail)?;
        bundles.push(bundle);
    }
    for bundle in &bundles {
        let what = format!("{} {} {}", bundle.country, bundle.kind, bundle.certificate.thumbprint());
        match import_bundle(&app, bundle).await? {
            Imported::New => say(format!("imported {what}"))?,
            Imported::Renewed => say(format!("renewed {what}"))?,
            Imported::AlreadyThere => say(format!("already imported: {what}"))?,
        };
    }
    Ok(ExitCode::SUCCESS)
}

/// Verifies a bundle against the configured trust anchor and stores it.
pub(super) async fn import_bundle(
    app: &App,
    bundle: &Bundle,
) -> Result<Imported, Box<dyn std::error::Error>> {
    verify(app, bundle)?;
    let thumbprint = bundle.certificate.thumbprint();
    let imported = app.store.import_certificate(&new_certificate(bundle), app.clock.now()).await?;
    if imported == Imported::AlreadyThere {
        if app.store.renew_certificate(&new_certificate(bundle)).await? {
            return Ok(Imported::Renewed);
        }
        let rows = app.store.certificates().await?;
        let same = |row: &&StoredCertificate| {
            row.thumbprint == thumbprint.as_bytes() && row.kind == bundle.kind.as_str()
        };
        if rows.iter().find(same).is_some_and(|row| row.revoked_at.is_some()) {
            return Err(format!(
                "the certificate {thumbprint} was revoked as {} and cannot be registered again; ask {} for a new one",
                bundle.kind, bundle.country
            )
            .into());
        }
    }
    Ok(imported)
}

/// Whether the registry would accept it.
fn verify(app: &App, bundle: &Bundle) -> Result<(), String> {
    let new = new_certificate(bundle);
    let row = StoredCertificate {
        id: 0,
        thumbprint: new.thumbprint.as_bytes().to_vec(),
        kind: new.kind.as_str().to_owned(),
        country: new.country,
        pem: new.pem,
        operator_signature: new.operator_signature,
        registration_signature: new.registration_signature,
        waived: new.waived,
        waived_by: new.waived_by,
        waived_because: new.waived_because,
        imported_at: app.clock.now(),
        revoked_at: None,
    };
    match Registry::verify(&[row], app.trust.anchor()).refused().first() {
        None => Ok(()),
        // The row's number has no meaning here.
        Some(reason) => Err(reason.split_once(": ").map_or(reason.as_str(), |(_, reason)| reason).to_owned()),
    }
}

fn new_certificate(bundle: &Bundle) -> NewCertificate {
    NewCertificate {
        thumbprint: bundle.certificate.thumbprint(),
        kind: bundle.kind,
        country: bundle.country.to_string(),
        pem: bundle.certificate.pem().to_owned(),
        operator_signature: bundle.operator_signature.clone(),
        registration_signature: bundle.registration_signature.clone(),
        waived: names(&bundle.waived),
        waived_by: bundle.waived_by.clone(),
        waived_because: bundle.waived_because.clone(),
    }
}

async fn list(args: &ListArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let now = app.clock.now();
    let rows = app.store.certificates().await?;
    let mut lines = Vec::new();
    for row in &rows {
        let registry = Registry::verify(std::slice::from_ref(row), app.trust.anchor());
        let (state, until) = match registry.entries().next() {
            None => ("REFUSED".to_owned(), None),
            Some(entry) => {
                let certificate = &entry.certificate;
                let active = registry.active(certificate.thumbprint(), entry.kind, now);
                let state = match active {
                    Ok(_) => "active",
                    Err(crate::trust::Inactive::Revoked) => "revoked",
                    Err(crate::trust::Inactive::Denied) => "denied",
                    Err(crate::trust::Inactive::Expired) => "expired",
                    Err(crate::trust::Inactive::NotYetValid) => "not-yet-valid",
                    Err(crate::trust::Inactive::Unknown | crate::trust::Inactive::NotPermitted) => "REFUSED",
                };
                (state.to_owned(), Some(certificate.not_after()))
            }
        };
        let thumbprint: String = row.thumbprint.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push((row, state, until, thumbprint, registry.refused().first().cloned()));
    }
    if args.json {
        let json: Vec<_> = lines
            .iter()
            .map(|(row, state, until, thumbprint, refused)| {
                serde_json::json!({
                    "country": row.country, "type": row.kind, "thumbprint": thumbprint, "state": state.to_lowercase(),
                    "notAfter": until, "daysLeft": until.map(|t| days_left(t, now)), "waived": row.waived,
                    "waivedBy": row.waived_by, "waivedBecause": row.waived_because,
                    "importedAt": row.imported_at, "revokedAt": row.revoked_at, "reason": refused,
                })
            })
            .collect();
        return say(serde_json::Value::from(json));
    }
    say(format!(
        "{:<3} {:<15} {:<14} {:<11} {:>9}  THUMBPRINT",
        "CC", "TYPE", "STATE", "VALID UNTIL", "DAYS LEFT"
    ))?;
    for (row, state, until, thumbprint, refused) in &lines {
        let until_text = until.map_or("-".to_owned(), |t| t.format("%Y-%m-%d").to_string());
        let days = until.map(|t| days_left(t, now));
        let soon = if days.is_some_and(|days| state == "active" && threshold(days).is_some()) {
            "  EXPIRES SOON"
        } else {
            ""
        };
        let days = days.map_or("-".to_owned(), |days| days.to_string());
        let waived = if row.waived.is_empty() { String::new() } else { format!("  {}", clean(&waiver(row))) };
        let refused = refused.as_ref().map(|reason| format!("  {}", clean(reason))).unwrap_or_default();
        say(format!(
            "{:<3} {:<15} {state:<14} {until_text:<11} {days:>9}  {thumbprint}{soon}{waived}{refused}",
            clean(&row.country),
            clean(&row.kind)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn revoke(args: &RevokeArgs) -> Outcome {
    let app = open_current(&args.file.config).await?;
    let revoked = app.store.revoke_certificate(args.thumbprint, app.clock.now()).await?;
    if revoked > 0 {
        return say(format!("revoked {} ({revoked} registrations)", args.thumbprint));
    }
    let known =
        app.store.certificates().await?.iter().any(|row| row.thumbprint == args.thumbprint.as_bytes());
    if known {
        say(format!("{} was already revoked", args.thumbprint))
    } else {
        Err(format!(
            "no certificate has the thumbprint {}; `efgs-gateway certificate list` shows them all. One that a \
             registered CA issued must be imported before it can be revoked",
            args.thumbprint
        )
        .into())
    }
}
