//! A gateway that says what a test wants it to say.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, Days, NaiveDate, Utc};
use efgs_protocol::{
    anchor::TrustAnchor,
    audit::AuditEntry,
    canonical::CanonicalKeys,
    certificate::Thumbprint,
    clock::Clock,
    country::Country,
    key::{DiagnosisKey, KeyBatch, KeyData, ReportType},
    signature::SignaturePolicy,
    wire,
};
use efgs_test_ca::{Identity, KeyKind, Participant, Pki, Request};

use super::super::{DownloadEvent, DownloadOptions, Downloader, Target};
use crate::{
    Format, Gateway,
    audit::Auditor,
    tests::server::{Asked, Reply, Server},
};

/// What is served as one batch.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) tag: String,
    pub(super) next: Option<String>,
    pub(super) keys: KeyBatch,
    pub(super) entries: Vec<AuditEntry>,
    pub(super) withdrawn: u32,
    /// What is sent in place of the keys' head and body.
    pub(super) raw: Option<Raw>,
}

/// Answers that are none.
#[derive(Clone)]
pub(super) enum Raw {
    /// This body.
    Body(Vec<u8>),
    /// The right head, half of the body, and then the end.
    CutOff,
    /// A body that has no end.
    Endless,
}

pub(super) type Change = Box<dyn FnMut(&mut Vec<Batch>) + Send>;

pub(super) struct Script {
    pub(super) batches: Vec<Batch>,
    /// The first day that is served.
    pub(super) oldest: NaiveDate,
    /// Whether the chain ends with each day.
    pub(super) daily: bool,
    /// Is done after each download of a batch, before the next request.
    pub(super) after_download: Option<Change>,
    pub(super) audit: Option<String>,
    /// A batch that is served under another name than it was asked for by.
    pub(super) misname: Option<(String, String)>,
    pub(super) asked: Vec<String>,
    /// The gateway's clock.
    pub(super) clock: Clock,
}

/// Two countries' backends, a gateway between them and Italy, and Italy's download.
pub(super) struct Scene {
    pub(super) pki: Pki,
    pub(super) germany: Participant,
    pub(super) netherlands: Participant,
    pub(super) script: Arc<Mutex<Script>>,
    pub(super) folder: tempfile::TempDir,
    pub(super) clock: Clock,
    pub(super) events: Arc<Mutex<Vec<DownloadEvent>>>,
    pub(super) server: Server,
}

pub(super) fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

pub(super) fn country(code: &str) -> Country {
    code.parse().unwrap()
}

/// The start of 21 November 2026, when the keys begin.
const BEGIN: u32 = 2_992_032;

/// When everything was uploaded.
pub(super) fn uploaded() -> DateTime<Utc> {
    "2026-11-22T09:00:00Z".parse().unwrap()
}

/// A country whose certificates are valid in the days of the scene.
pub(super) fn participant(pki: &Pki, code: &str) -> Participant {
    let valid = |request| Request {
        not_before: uploaded() - Days::new(20),
        not_after: uploaded() + Days::new(20),
        ..request
    };
    pki.participant_with(country(code), valid).unwrap()
}

/// Some keys of a country, different for each number.
pub(super) fn keys(origin: &str, numbers: std::ops::Range<u32>) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for number in numbers {
        let mut key_data = [0; 16];
        key_data[..4].copy_from_slice(&number.to_be_bytes());
        let key = DiagnosisKey {
            key_data: KeyData::new(key_data),
            rolling_start_interval_number: BEGIN,
            rolling_period: 144,
            transmission_risk_level: 3,
            origin: country(origin),
            report_type: ReportType::ConfirmedTest,
            days_since_onset_of_symptoms: 2,
        };
        batch.push(key, &[country("FR")]);
    }
    batch
}

pub(super) fn entry(participant: &Participant, keys: &KeyBatch) -> AuditEntry {
    signed_with(participant, &participant.signing, keys)
}

/// An entry of a participant whose batch signature was made by somebody.
pub(super) fn signed_with(participant: &Participant, signer: &Identity, keys: &KeyBatch) -> AuditEntry {
    let (authentication, signing) = (&participant.authentication, &participant.signing);
    let signature = signer.signer().unwrap().sign(&CanonicalKeys::of(keys).signed_bytes()).unwrap();
    AuditEntry {
        country: country(participant.country.as_str()),
        uploaded_time: uploaded(),
        uploader_certificate: authentication.certificate.pem().to_owned(),
        uploader_thumbprint: Thumbprint::of(authentication.certificate.der()),
        uploader_operator_signature: authentication.bundle.operator_signature.clone(),
        signing_certificate: signing.certificate.pem().to_owned(),
        uploader_signing_thumbprint: Thumbprint::of(signing.certificate.der()),
        signing_certificate_operator_signature: signing.bundle.operator_signature.clone(),
        amount: u32::try_from(keys.len()).unwrap(),
        batch_signature: signature,
    }
}

impl Scene {
    /// A gateway with three honest batches of two days.
    pub(super) fn new() -> Self {
        let pki = Pki::new(KeyKind::Ec256).unwrap();
        let clock = Clock::manual("2026-11-24T12:00:00Z".parse().unwrap());
        let [germany, netherlands] = ["DE", "NL"].map(|code| participant(&pki, code));
        let script = Script {
            batches: Vec::new(),
            oldest: day("2026-11-10"),
            daily: false,
            after_download: None,
            audit: None,
            misname: None,
            asked: Vec::new(),
            clock: clock.clone(),
        };
        let script = Arc::new(Mutex::new(script));
        let serving = script.clone();
        let server = Server::replying(move |asked| serving.lock().unwrap().reply(asked));
        let scene = Self {
            pki,
            germany,
            netherlands,
            script,
            folder: tempfile::tempdir().unwrap(),
            clock,
            events: Arc::default(),
            server,
        };
        for (i, tag) in ["20261122-1", "20261122-2", "20261123-1"].into_iter().enumerate() {
            scene.add(tag, 10 * i as u32);
        }
        scene
    }

    /// Adds a batch of two uploads, 3 keys of DE and 2 of NL, behind the last one.
    pub(super) fn add(&self, tag: &str, first_key: u32) {
        let uploads = [keys("DE", first_key..first_key + 3), keys("NL", first_key + 3..first_key + 5)];
        let entries = vec![entry(&self.germany, &uploads[0]), entry(&self.netherlands, &uploads[1])];
        let keys = uploads.iter().flat_map(KeyBatch::iter).collect();
        let batch = Batch { tag: tag.into(), next: None, keys, entries, withdrawn: 0, raw: None };
        let batches = &mut self.script.lock().unwrap().batches;
        if let Some(last) = batches.last_mut() {
            last.next = Some(tag.into());
        }
        batches.push(batch);
    }

    /// Changes the second batch.
    pub(super) fn lie(&self, change: impl FnOnce(&mut Batch)) {
        change(&mut self.script.lock().unwrap().batches[1]);
    }

    pub(super) fn auditor(&self) -> Auditor {
        Auditor {
            country: country("IT"),
            anchor: TrustAnchor::from_pem(self.pki.anchor_pair.certificate.pem()).unwrap(),
            policy: SignaturePolicy::default(),
        }
    }

    pub(super) fn options(&self) -> DownloadOptions {
        let gateway = Gateway::new(self.server.settings()).unwrap();
        let mut options = DownloadOptions::new(gateway, self.auditor(), self.folder.path().join("state"));
        options.settle = std::time::Duration::ZERO;
        options.retry.limit = 1;
        options.retry.first = std::time::Duration::from_millis(1);
        options.clock = self.clock.clone();
        let events = self.events.clone();
        options.on_event = Box::new(move |event| events.lock().unwrap().push(event.clone()));
        options
    }

    pub(super) fn batches_folder(&self) -> std::path::PathBuf {
        self.folder.path().join("batches")
    }

    pub(super) fn target(&self) -> Target {
        Target::Folder { path: self.batches_folder(), format: Format::Protobuf }
    }

    pub(super) fn open(&self) -> Downloader {
        Downloader::open(self.options(), self.target()).unwrap()
    }

    /// The names of all files in the folder of batches, hidden ones too, but not its lock.
    pub(super) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.batches_folder()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != ".efgs-download.lock");
        names.sort();
        names
    }
}

fn head(status: &str, media: &str, headers: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\n{headers}\r\n")
        .into_bytes()
}

fn json(status: &str, headers: &str, body: &str) -> Reply {
    Reply::Whole([head(status, "application/json", headers, body.len()), body.into()].concat())
}

fn refusal(status: &str, code: &str, headers: &str) -> Reply {
    json(status, headers, &format!(r#"{{"message":"no","code":"{code}"}}"#))
}

impl Script {
    fn reply(&mut self, asked: &Asked) -> Reply {
        let path = asked.line.split(' ').nth(1).unwrap().to_owned();
        self.asked.push(format!("{path} {}", asked.header("batchtag")).trim_end().to_owned());
        let rest = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix('/').map(str::to_owned);
        if let Some(rest) = rest(wire::AUDIT_PATH) {
            let (_, tag) = rest.split_once('/').unwrap();
            let Some(batch) = self.batches.iter().find(|batch| batch.tag == tag) else {
                return refusal("404 Not Found", "batch-not-found", "");
            };
            let body = serde_json::to_string(&batch.entries).unwrap();
            let headers = format!("withdrawnUploads: {}\r\n", batch.withdrawn);
            return json("200 OK", &headers, self.audit.as_ref().unwrap_or(&body));
        }
        let date = day(&rest(wire::DOWNLOAD_PATH).unwrap());
        if date < self.oldest {
            return refusal("410 Gone", "gone", "");
        }
        let time = format!("Date: {}\r\n", self.clock.now().format("%a, %d %b %Y %H:%M:%S GMT"));
        let batch_day = |batch: &Batch| {
            let name: Result<efgs_protocol::batch_tag::DayName, _> = batch.tag.parse();
            name.map(|name| name.day)
        };
        let found = match asked.header("batchtag") {
            "" => self.batches.iter().find(|batch| match batch_day(batch) {
                Ok(day) => day == date || (day > date && !self.daily),
                Err(_) => true,
            }),
            tag => self.batches.iter().find(|batch| batch.tag == tag),
        };
        let Some(batch) = found.cloned() else {
            return refusal("404 Not Found", "batch-not-found", &time);
        };
        let next = batch.next.as_deref().filter(|next| {
            let next_day = next.split('-').next();
            !self.daily || batch.tag.split('-').next() == next_day
        });
        let etag = format!("\"{}-{}\"", batch.tag, batch.withdrawn);
        let name = match &self.misname {
            Some((asked, answered)) if *asked == batch.tag => answered,
            _ => &batch.tag,
        };
        let next = next.unwrap_or("null");
        let headers = format!("batchTag: {name}\r\nnextBatchTag: {next}\r\nETag: {etag}\r\n{time}");
        if asked.header("if-none-match") == etag {
            return Reply::Whole(format!("HTTP/1.1 304 Not Modified\r\n{headers}\r\n").into_bytes());
        }
        let media = "application/protobuf; version=1.0";
        let body = match &batch.raw {
            Some(Raw::Body(body)) => body.clone(),
            _ => wire::encode(Format::Protobuf, &batch.keys),
        };
        if let Some(change) = &mut self.after_download {
            change(&mut self.batches);
        }
        let whole = [head("200 OK", media, &headers, body.len()), body.clone()].concat();
        match batch.raw {
            Some(Raw::CutOff) => Reply::CutOff(whole[..whole.len() - body.len() / 2].to_vec()),
            Some(Raw::Endless) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
                );
                let chunk = [b"1000000\r\n".as_slice(), &vec![0; 0x100_0000], b"\r\n"].concat();
                Reply::CutOff([head.into_bytes(), chunk.repeat(5)].concat())
            }
            _ => Reply::Whole(whole),
        }
    }
}
