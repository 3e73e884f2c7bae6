//! A small S3-compatible store that keeps objects in memory and believes only correct signatures (AWS Signature
//! Version 4 in the query).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle, web};
use aws_lc_rs::hmac;
use sha2::{Digest, Sha256};

pub(crate) const ACCESS_KEY: &str = "journal-writer";
pub(crate) const SECRET_KEY: &str = "the-secret-of-the-journal-writer";
pub(crate) const REGION: &str = "eu-central-1";
/// Objects in one page of a list.
const PAGE: usize = 3;

#[derive(Default)]
struct State {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    away: AtomicBool,
    silent: AtomicBool,
    lists: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
    puts: Mutex<Vec<Put>>,
}

/// An object that was put, and its metadata.
#[derive(Clone)]
pub(crate) struct Put {
    pub(crate) name: String,
    pub(crate) content_type: String,
    pub(crate) cache_control: String,
}

pub(crate) struct ObjectStore {
    state: Arc<State>,
    server: ServerHandle,
    pub(crate) endpoint: String,
}

impl ObjectStore {
    pub(crate) fn start() -> Self {
        let state = Arc::new(State::default());
        let (send, receive) = std::sync::mpsc::channel();
        let shared = state.clone();
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(web::Data::from(shared.clone()))
                        .app_data(web::PayloadConfig::new(64 << 20))
                        .default_service(web::to(answer))
                })
                .workers(1)
                .disable_signals()
                .bind(("127.0.0.1", 0))
                .unwrap();
                let address = server.addrs()[0];
                let server = server.run();
                send.send((address, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (address, server) = receive.recv().unwrap();
        Self { state, server, endpoint: format!("http://{address}") }
    }

    /// From now on every request is answered 503, or no longer.
    pub(crate) fn set_unreachable(&self, unreachable: bool) {
        self.state.away.store(unreachable, Ordering::SeqCst);
    }

    /// From now on no request is answered, or all are, those that wait too.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::SeqCst);
    }

    /// The prefixes that were listed since this was last asked, with the delimiter behind.
    pub(crate) fn lists(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lists.lock().unwrap())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state.objects.lock().unwrap().keys().cloned().collect()
    }

    pub(crate) fn object(&self, name: &str) -> Option<Vec<u8>> {
        self.state.objects.lock().unwrap().get(name).cloned()
    }

    /// Adds an object without a request.
    pub(crate) fn insert(&self, name: &str, object: &[u8]) {
        self.state.objects.lock().unwrap().insert(name.to_owned(), object.to_vec());
    }

    /// What was put, in its order.
    pub(crate) fn puts(&self) -> Vec<Put> {
        self.state.puts.lock().unwrap().clone()
    }

    /// Why requests were refused.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.state.refused.lock().unwrap().clone()
    }

    pub(crate) async fn stop(self) {
        self.server.stop(false).await;
    }
}

async fn answer(request: HttpRequest, body: web::Bytes, state: web::Data<State>) -> HttpResponse {
    while state.silent.load(Ordering::SeqCst) {
        actix_web::rt::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    if state.away.load(Ordering::SeqCst) {
        return HttpResponse::ServiceUnavailable().body("<Error><Code>SlowDown</Code></Error>");
    }
    if let Err(reason) = verify(&request) {
        state.refused.lock().unwrap().push(format!("{} {}: {reason}", request.method(), request.path()));
        return HttpResponse::Forbidden().body("<Error><Code>SignatureDoesNotMatch</Code></Error>");
    }
    let Some(key) = request.path().strip_prefix("/efgs-journal/") else {
        return HttpResponse::NotFound().body("<Error><Code>NoSuchBucket</Code></Error>");
    };
    let key = unescape(key);
    let mut objects = state.objects.lock().unwrap();
    match request.method().as_str() {
        "PUT" => {
            state.puts.lock().unwrap().push(Put {
                name: key.clone(),
                content_type: header(&request, "content-type"),
                cache_control: header(&request, "cache-control"),
            });
            objects.insert(key, body.to_vec());
            HttpResponse::Ok().finish()
        }
        "GET" if key.is_empty() => list(&request, &objects, &state),
        "GET" => match objects.get(&key) {
            Some(object) => HttpResponse::Ok().body(object.clone()),
            None => HttpResponse::NotFound().body("<Error><Code>NoSuchKey</Code></Error>"),
        },
        "DELETE" => {
            objects.remove(&key);
            HttpResponse::NoContent().finish()
        }
        _ => HttpResponse::MethodNotAllowed().finish(),
    }
}

fn list(request: &HttpRequest, objects: &BTreeMap<String, Vec<u8>>, state: &State) -> HttpResponse {
    let query = query(request);
    let [prefix, delimiter, after] = ["prefix", "delimiter", "continuation-token"]
        .map(|name| query.get(name).cloned().unwrap_or_default());
    state.lists.lock().unwrap().push(format!("{prefix} {delimiter}"));
    // With a delimiter keys are one entry as far as it, behind the prefix.
    let entry = |key: &str| match key[prefix.len()..].find(&delimiter) {
        Some(end) if !delimiter.is_empty() => key[..prefix.len() + end + delimiter.len()].to_owned(),
        _ => key.to_owned(),
    };
    let keys = objects.keys().filter(|key| key.starts_with(&prefix));
    let entries: BTreeSet<String> = keys.map(|key| entry(key)).filter(|entry| *entry > after).collect();
    let page: Vec<&String> = entries.iter().take(PAGE).collect();
    let next = page.last().filter(|_| entries.len() > PAGE);
    let next =
        next.map_or(String::new(), |key| format!("<NextContinuationToken>{key}</NextContinuationToken>"));
    let contents: String = page
        .iter()
        .map(|key| match objects.get(*key) {
            Some(object) => {
                format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", object.len())
            }
            None => format!("<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>"),
        })
        .collect();
    let namespace = "http://s3.amazonaws.com/doc/2006-03-01/";
    HttpResponse::Ok().content_type("application/xml").body(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"{namespace}\"><Name>efgs-journal</Name>{next}{contents}</ListBucketResult>"
    ))
}

fn header(request: &HttpRequest, name: &str) -> String {
    request.headers().get(name).map_or(String::new(), |value| value.to_str().unwrap().trim().to_owned())
}

fn query(request: &HttpRequest) -> BTreeMap<String, String> {
    let pairs = request.query_string().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (unescape(name), unescape(value))).collect()
}

fn unescape(text: &str) -> String {
    let url = reqwest::Url::parse(&format!("http://x/?v={}", text.replace('+', "%2B"))).unwrap();
    url.query_pairs().next().unwrap().1.into_owned()
}

/// The signature as the specification of AWS computes it.
fn verify(request: &HttpRequest) -> Result<(), String> {
    let values = query(request);
    let value = |name: &str| values.get(name).ok_or_else(|| format!("{name} is missing"));
    let (date, signature) = (value("X-Amz-Date")?, value("X-Amz-Signature")?);
    let scope = format!("{}/{REGION}/s3/aws4_request", &date[..8]);
    if *value("X-Amz-Credential")? != format!("{ACCESS_KEY}/{scope}") {
        return Err("the credential is another one".into());
    }
    let mut pairs: Vec<&str> =
        request.query_string().split('&').filter(|pair| !pair.starts_with("X-Amz-Signature=")).collect();
    pairs.sort_unstable();
    let signed = value("X-Amz-SignedHeaders")?;
    if !signed.split(';').any(|name| name == "host") {
        return Err("the host is not signed".into());
    }
    let headers: String =
        signed.split(';').map(|name| format!("{name}:{}\n", header(request, name))).collect();
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{signed}\nUNSIGNED-PAYLOAD",
        request.method(),
        request.uri().path(),
        pairs.join("&")
    );
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let sign = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
    };
    let mut key = sign(format!("AWS4{SECRET_KEY}").as_bytes(), &date[..8]);
    for part in [REGION, "s3", "aws4_request"] {
        key = sign(&key, part);
    }
    if hex(&sign(&key, &to_sign)) == *signature { Ok(()) } else { Err("the signature is wrong".into()) }
}
