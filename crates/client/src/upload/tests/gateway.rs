//! As much of a gateway as an uploader can see, and its faults.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use efgs_protocol::{media::Format, wire};
use sha2::{Digest, Sha256};

use crate::{
    Gateway,
    tests::server::{Asked, Reply, Server},
};

/// What goes wrong with a call.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// This status, with headers if need be; nothing is stored.
    Refuse(String),
    /// This 207; nothing is stored.
    MultiStatus(String),
    /// The answer is lost.
    StoreAndHangUp,
    /// Half of the answer is lost.
    StoreAndCutOff,
    /// The call fails.
    HangUp,
}

#[derive(Default)]
struct Inner {
    faults: VecDeque<Fault>,
    tags: Vec<String>,
    longest_body: usize,
    /// The key numbers of each upload, by tag.
    uploads: BTreeMap<String, ([u8; 32], Vec<u32>)>,
    /// In which upload each key is, if any.
    keys: BTreeMap<u32, String>,
    on_call: Option<Box<dyn Fn() + Send>>,
}

pub(super) struct Fake {
    pub(super) gateway: Gateway,
    inner: Arc<Mutex<Inner>>,
    _server: Server,
}

impl Fake {
    pub(super) fn start() -> Self {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let server = Server::replying({
            let inner = inner.clone();
            move |asked| inner.lock().unwrap().reply(asked)
        });
        Self { gateway: Gateway::new(server.settings()).unwrap(), inner, _server: server }
    }

    /// What goes wrong with the next calls, instead of anything that was announced before.
    pub(super) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.lock().unwrap().faults = faults.into_iter().collect();
    }

    /// Keys of another country's upload.
    pub(super) fn has(&self, numbers: impl IntoIterator<Item = u32>) {
        self.inner.lock().unwrap().keys.extend(numbers.into_iter().map(|number| (number, "other".into())));
    }

    pub(super) fn on_call(&self, call: impl Fn() + Send + 'static) {
        self.inner.lock().unwrap().on_call = Some(Box::new(call));
    }

    /// The numbers of all keys.
    pub(super) fn stored(&self) -> Vec<u32> {
        self.inner.lock().unwrap().keys.keys().copied().collect()
    }

    /// The numbers of each upload's keys.
    pub(super) fn uploads(&self) -> Vec<Vec<u32>> {
        self.inner.lock().unwrap().uploads.values().map(|(_, numbers)| numbers.clone()).collect()
    }

    /// The tags of all calls, in order.
    pub(super) fn tags(&self) -> Vec<String> {
        self.inner.lock().unwrap().tags.clone()
    }

    pub(super) fn longest_body(&self) -> usize {
        self.inner.lock().unwrap().longest_body
    }
}

impl Inner {
    fn reply(&mut self, asked: &Asked) -> Reply {
        self.tags.push(asked.header("batchtag").to_owned());
        self.longest_body = self.longest_body.max(asked.body.len());
        if let Some(on_call) = &self.on_call {
            on_call();
        }
        match self.faults.pop_front() {
            None => self.store(asked),
            Some(Fault::Refuse(status)) => answer(&status, "{}"),
            Some(Fault::MultiStatus(body)) => answer("207 Multi-Status", &body),
            Some(Fault::HangUp) => Reply::CutOff(Vec::new()),
            Some(Fault::StoreAndHangUp) => {
                self.store(asked);
                Reply::CutOff(Vec::new())
            }
            Some(Fault::StoreAndCutOff) => match self.store(asked) {
                Reply::Whole(bytes) => Reply::CutOff(bytes[..bytes.len() / 2].to_vec()),
                other => other,
            },
        }
    }

    /// All or nothing, and a repetition is no second upload.
    fn store(&mut self, asked: &Asked) -> Reply {
        let tag = asked.header("batchtag").to_owned();
        let body = Sha256::digest(&asked.body).into();
        let keys = wire::decode(Format::Protobuf, &asked.body, usize::MAX).unwrap();
        let numbers: Vec<u32> = keys
            .iter()
            .map(|key| {
                let (numbers, _) = key.key_data.as_bytes().as_chunks();
                u32::from_be_bytes(numbers[0])
            })
            .collect();
        match self.uploads.get(&tag) {
            Some((stored, _)) if *stored == body => return answer("201 Created", ""),
            Some(_) => return answer("409 Conflict", r#"{"code":"upload-tag-taken"}"#),
            None => {}
        }
        let (existing, accepted): (Vec<usize>, Vec<usize>) =
            (0..numbers.len()).partition(|at| self.keys.contains_key(&numbers[*at]));
        if !existing.is_empty() {
            let body = serde_json::json!({"201": accepted, "409": existing, "500": []});
            return answer("207 Multi-Status", &body.to_string());
        }
        self.keys.extend(numbers.iter().map(|number| (*number, tag.clone())));
        self.uploads.insert(tag, (body, numbers));
        answer("201 Created", "")
    }
}

fn answer(status: &str, body: &str) -> Reply {
    Reply::Whole(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into())
}
