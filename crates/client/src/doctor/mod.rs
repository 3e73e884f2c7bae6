//! Checks whether a profile works: its files, its certificates, and whether the gateway accepts them.
//!
//! It changes and stores nothing, neither here nor at the gateway.

use std::{fmt, path::Path, time::Duration};

use chrono::{DateTime, Utc};
use efgs_protocol::{
    batch_tag::UploadTag,
    certificate::{Certificate, CertificateType, Rule},
    clock::Clock,
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    media::Format,
    signature::BatchSigner,
};
use serde::Serialize;

use crate::{Error, Gateway, Profile, Upload, profile::ProfileError};

mod reach;

/// Warns about a certificate that expires within this many days.
const EXPIRES_SOON: i64 = 60;
/// Clock skew that causes a warning: tokens and logs begin to disagree.
const SKEW_WARNING: Duration = Duration::from_secs(60);
/// Clock skew at which keys and signatures are rejected as being from the future.
const SKEW_FAILURE: Duration = Duration::from_secs(300);

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As required.
    Ok,
    /// It works, but somebody should look at it.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be checked, because something before it failed or is not set.
    Skipped,
}

/// One check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its stable name, such as `authorisation`.
    pub check: String,
    /// Its result.
    pub state: State,
    /// The finding.
    pub detail: String,
    /// What to do; none if the check passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// A check that failed.
    pub fn failed(check: &str, detail: impl ToString, remedy: impl Into<String>) -> Self {
        Self::new(check, State::Failed, detail, Some(remedy.into()))
    }

    fn new(check: &str, state: State, detail: impl ToString, remedy: Option<String>) -> Self {
        Self { check: check.to_owned(), state, detail: detail.to_string(), remedy }
    }

    fn ok(check: &str, detail: impl ToString) -> Self {
        Self::new(check, State::Ok, detail, None)
    }

    fn warning(check: &str, detail: impl ToString, remedy: impl Into<String>) -> Self {
        Self::new(check, State::Warning, detail, Some(remedy.into()))
    }

    fn skipped(check: &str, detail: impl ToString) -> Self {
        Self::new(check, State::Skipped, detail, None)
    }
}

/// Checks everything that needs no network: files, keys, certificates, the trust anchor.
pub fn examine_files(profile: &Profile, clock: &Clock) -> Vec<Check> {
    let mut checks =
        vec![Check::ok("profile", format_args!("{} of {}", profile.path().display(), profile.country()))];
    let open = profile.warnings();
    if open.is_empty() {
        checks.push(Check::ok("permissions", "no other user of this machine can read the keys"));
    }
    checks.extend(open.into_iter().map(|warning| {
        let (detail, remedy) = warning.split_once(": ").unwrap_or((&warning, "chmod 600"));
        Check::warning("permissions", detail, remedy)
    }));
    checks.push(folder("state", &profile.state()));
    let now = clock.now();
    match profile.authentication() {
        Ok(identity) => {
            checks.extend(certificate(profile, CertificateType::Authentication, identity.certificate(), now));
        }
        Err(error) => checks.push(Check::failed("authentication", error, "fix it: nothing works without it")),
    }
    match profile.signer() {
        Ok(signer) => {
            checks.extend(certificate(profile, CertificateType::Signing, signer.certificate(), now))
        }
        // A backend that never uploads needs none.
        Err(error @ ProfileError::Missing(_)) => checks.push(Check::skipped("signing", error)),
        Err(error) => {
            checks.push(Check::failed("signing", error, "fix it, or remove `[signing]` and do not upload"))
        }
    }
    match profile.callback() {
        Ok(server) => {
            checks.extend(certificate(
                profile,
                CertificateType::Callback,
                server.identity.certificate(),
                now,
            ));
            let expired = server.gateway.iter().filter(|certificate| !certificate.is_valid_at(now));
            checks.extend(expired.map(|certificate| {
                Check::warning(
                    "callback.gateway",
                    format_args!("{} is not valid now", certificate.subject()),
                    "ask the operator for the certificate that the gateway presents now",
                )
            }));
        }
        Err(ProfileError::Missing(_)) => {}
        Err(error) => checks.push(Check::failed("callback", error, "fix it, or remove `[callback]`")),
    }
    match profile.export() {
        Ok(export) => {
            checks.push(Check::ok("export", "the signing key exists, on the curve P-256"));
            checks.push(folder("export.folder", &export.folder));
        }
        Err(ProfileError::Missing(_)) => {}
        Err(error) => checks.push(Check::failed("export", error, "fix it, or remove `[export]`")),
    }
    checks.push(match profile.anchor() {
        Ok(anchor) => anchor_check(anchor.certificate(), now),
        Err(error) => Check::failed(
            "trust-anchor",
            error,
            "ask the operator for the trust anchor's certificate; downloads need it",
        ),
    });
    checks
}

/// Checks the connection to the gateway, its clock, and whether it accepts both certificates.
pub async fn examine_gateway(profile: &Profile, clock: &Clock) -> Vec<Check> {
    let (gateway, detail) = match connect(profile).await {
        Ok(connected) => connected,
        Err(failed) => return vec![failed],
    };
    let mut checks = vec![Check::ok("connection", detail)];
    checks.push(clock_check(&gateway, clock).await);
    let authorised = authorisation(&gateway, profile).await;
    let may_call = authorised.state == State::Ok;
    checks.push(authorised);
    checks.push(match profile.signer() {
        Ok(signer) if may_call => signing_identity(&gateway, profile.country(), &signer, clock.now()).await,
        Ok(_) => Check::skipped("signing-identity", "the gateway does not accept this backend"),
        Err(error) => Check::skipped("signing-identity", error),
    });
    checks
}

/// The gateway, and how it was reached.
async fn connect(profile: &Profile) -> Result<(Gateway, String), Check> {
    let unusable = |error: &dyn fmt::Display, remedy: &str| Check::failed("connection", error, remedy);
    let settings = profile
        .settings()
        .map_err(|error| unusable(&error, "fix the profile first; the gateway was not called"))?;
    let detail = reach::reach(&settings).await?;
    let gateway = Gateway::new(settings).map_err(|error| unusable(&error, "fix the profile"))?;
    Ok((gateway, detail))
}

/// Whether this user can write to a folder. It tries with an unnamed file, which is deleted at once.
fn folder(check: &str, path: &Path) -> Check {
    let shown = path.display();
    let remedy = "allow this user to write there, or name another folder in the profile";
    let (when, done) = match path.exists() {
        true => ("", "written to"),
        false => (" will be created by the first command that needs it", "created"),
    };
    // A relative path is below the working directory.
    let nearest = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("."));
    match tempfile::tempfile_in(nearest) {
        Ok(_) => Check::ok(check, format_args!("{shown}{when}")),
        Err(error) => Check::failed(check, format_args!("{shown} cannot be {done}: {error}"), remedy),
    }
}

/// The operator's rules for certificates, one line for each that the certificate breaks.
fn certificate(
    profile: &Profile,
    kind: CertificateType,
    certificate: &Certificate,
    now: DateTime<Utc>,
) -> Vec<Check> {
    let name = kind.as_str().to_ascii_lowercase();
    let mut checks = vec![Check::ok(
        &name,
        format_args!(
            "{}, {}, thumbprint {}",
            certificate.subject(),
            certificate.key_description(),
            certificate.thumbprint()
        ),
    )];
    for finding in certificate.check(Some(profile.country()), kind, now) {
        let named = format!("{name}.{}", finding.rule);
        match finding.rule {
            _ if finding.passed => {}
            // The remaining validity is checked below. The rule is for newly submitted certificates.
            Rule::Validity => {}
            Rule::Country => checks.push(Check::failed(
                &named,
                finding.explanation,
                format!("`country` is {}: correct it, or use that country's certificate", profile.country()),
            )),
            Rule::Expired | Rule::NotYetValid => checks.push(Check::failed(
                &named,
                finding.explanation,
                "send a new certificate to the operator; is this machine's clock correct?",
            )),
            Rule::Version | Rule::KeySize | Rule::Hash | Rule::Usage => checks.push(Check::warning(
                &named,
                finding.explanation,
                "the operator registers it only as an exception to the rule: create one that meets the rule",
            )),
        }
    }
    let left = (certificate.not_after() - now).num_days();
    if (0..=EXPIRES_SOON).contains(&left) {
        checks.push(Check::warning(
            &format!("{name}.expiry"),
            format_args!("{left} days left, until {}", certificate.not_after().date_naive()),
            "send the next one now: the operator can register both, so that no call is rejected in between",
        ));
    }
    checks
}

fn anchor_check(certificate: &Certificate, now: DateTime<Utc>) -> Check {
    let detail = format!("{}, thumbprint {}", certificate.subject(), certificate.thumbprint());
    match certificate.is_valid_at(now) {
        true => Check::ok("trust-anchor", detail),
        // What it signed stays valid. Still, the operator should have announced a new one.
        false => Check::warning(
            "trust-anchor",
            format_args!("{detail}, valid until {}", certificate.not_after().date_naive()),
            "ask the operator for the current trust anchor",
        ),
    }
}

async fn clock_check(gateway: &Gateway, clock: &Clock) -> Check {
    let before = clock.now();
    let probe = match gateway.probe().await {
        Ok(probe) => probe,
        Err(error) => {
            return Check::failed(
                "gateway",
                error,
                "does `gateway.url` lead to a Federation Gateway? Ask the operator",
            );
        }
    };
    let Some(date) = probe.date else {
        return Check::skipped("clock", "the gateway does not send its time");
    };
    // The gateway sent its time between these two, truncated to a whole second.
    let (earliest, latest) = (before - chrono::Duration::seconds(1), clock.now());
    let (skew, direction) =
        if date < earliest { (earliest - date, "ahead of") } else { (date - latest, "behind") };
    let skew = skew.to_std().unwrap_or_default();
    let detail = format!("this clock is {}s {direction} the gateway's", skew.as_secs());
    let remedy = "set this machine's clock by NTP: keys and signatures from the future are rejected";
    match skew {
        skew if skew.as_secs() == 0 => Check::ok("clock", "agrees with the gateway's"),
        skew if skew > SKEW_FAILURE => Check::failed("clock", detail, remedy),
        skew if skew > SKEW_WARNING => Check::warning("clock", detail, remedy),
        _ => Check::ok("clock", detail),
    }
}

async fn authorisation(gateway: &Gateway, profile: &Profile) -> Check {
    const NAME: &str = "authorisation";
    match gateway.callbacks().await {
        Ok(callbacks) => Check::ok(
            NAME,
            format_args!(
                "the gateway accepts {}; {} callbacks are registered",
                profile.country(),
                callbacks.len()
            ),
        ),
        Err(Error::Refused(refusal)) if refusal.status == 403 => {
            let thumbprint =
                profile.authentication().map(|identity| identity.certificate().thumbprint().to_string());
            let remedy = format!(
                "ask the operator to register this certificate for {} as AUTHENTICATION: {}",
                profile.country(),
                thumbprint.unwrap_or_default()
            );
            Check::failed(NAME, refusal, remedy)
        }
        Err(error) => Check::failed(NAME, &error, later_or(&error, "ask the operator")),
    }
}

/// Lets the gateway check the signing certificate, without an upload that could be stored.
///
/// The gateway checks an upload in a fixed order: caller, headers, format, size, keys, signature and trust, and
/// only then whether it has the keys. So an upload that contains one key twice is checked as far as the signer's
/// trust, and then answered 207: nothing is stored, and the tag stays free. The key is random and belongs to
/// nobody, so that a gateway that stored it nevertheless would warn nobody.
async fn signing_identity(
    gateway: &Gateway,
    country: Country,
    signer: &BatchSigner,
    now: DateTime<Utc>,
) -> Check {
    const NAME: &str = "signing-identity";
    let outcome = match twice(country, now) {
        Ok((tag, keys)) => gateway.upload(&tag, Format::Protobuf, &keys, signer).await,
        Err(reason) => return Check::skipped(NAME, reason),
    };
    match outcome {
        Ok(Upload::Conflicts { .. }) => Check::ok(
            NAME,
            format_args!("the gateway trusts the signatures of {country}; nothing was stored"),
        ),
        Ok(Upload::Stored) => Check::failed(
            NAME,
            "the gateway stored a key that was twice in one upload",
            "contact the operator: the upload tag is efgs-doctor, and it can be withdrawn",
        ),
        Err(Error::Refused(refusal)) if refusal.code.as_deref() == Some("untrusted-signer") => {
            let remedy = format!(
                "ask the operator to register this certificate for {country} as SIGNING: {}",
                signer.certificate().thumbprint()
            );
            Check::failed(NAME, refusal, remedy)
        }
        Err(error) => Check::failed(NAME, &error, later_or(&error, "ask the operator, with this message")),
    }
}

/// A key of yesterday, twice.
fn twice(country: Country, now: DateTime<Utc>) -> Result<(UploadTag, KeyBatch), String> {
    let tag = "efgs-doctor".parse::<UploadTag>().map_err(|e| e.to_string())?;
    let yesterday =
        u32::try_from(now.timestamp() / 86_400 - 1).map_err(|_| "this machine's clock is wrong")?;
    let key = DiagnosisKey {
        key_data: KeyData::new(efgs_protocol::random::bytes()),
        rolling_start_interval_number: yesterday * 144,
        rolling_period: 1,
        transmission_risk_level: 0,
        origin: country,
        report_type: ReportType::Unknown,
        days_since_onset_of_symptoms: 0,
    };
    let mut keys = KeyBatch::new();
    keys.push(key, &[]);
    keys.push(key, &[]);
    Ok((tag, keys))
}

fn later_or(error: &Error, otherwise: &str) -> String {
    if error.is_temporary() { "try again in a minute".into() } else { otherwise.into() }
}
