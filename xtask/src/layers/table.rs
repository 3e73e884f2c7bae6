//! The tables that the code is checked against. Change them in the same commit as the code.

use super::crates::{self, May};
use super::names;
use super::order::Layer;

/// The top-level modules of src/, the top first. A module uses only what is in lower layers.
pub(super) const MODULES: &[Layer] = &[
    Layer { name: "program", members: &["main", "lib"], together: true },
    Layer { name: "cli", members: &["cli"], together: false },
    Layer { name: "server", members: &["server"], together: false },
    Layer {
        name: "features",
        members: &[
            "upload",
            "download",
            "audit",
            "withdrawal",
            "callback",
            "batching",
            "expiry",
            "rotation",
            "options",
        ],
        together: false,
    },
    Layer { name: "journal", members: &["journal"], together: false },
    Layer { name: "callers", members: &["trust"], together: false },
    Layer { name: "records", members: &["access_log", "chain", "body_cache", "downloaded"], together: false },
    Layer { name: "toolkit", members: &["http", "jobs", "limits", "workers"], together: true },
];

/// The workspace's crates, the top first. A crate depends only on what is in lower layers.
pub(super) const CRATES: &[Layer] = &[
    Layer { name: "tools", members: &["xtask", "efgs-bench"], together: false },
    Layer { name: "gateway", members: &["efgs-gateway"], together: false },
    Layer { name: "store", members: &["efgs-store"], together: false },
    Layer { name: "schema", members: &["efgs-migrations"], together: false },
    Layer { name: "intake", members: &["efgs-intake", "efgs-access-log"], together: false },
    Layer { name: "kit", members: &["efgs-kit"], together: false },
    Layer { name: "client", members: &["efgs-client"], together: false },
    Layer { name: "object store", members: &["efgs-object-store"], together: false },
    Layer { name: "test PKI", members: &["efgs-test-ca"], together: false },
    Layer { name: "protocol", members: &["efgs-protocol"], together: false },
];

/// What the order of the crates does not say.
pub(super) const DEPENDENCIES: &[crates::Rule] = &[
    crates::Rule {
        on: &["sea-orm*", "sqlx*", "mysql_async"],
        may: May::Only(&["efgs-store", "efgs-migrations", "efgs-bench"]),
        reason: "only the store and its migrations know SQL; the benchmarks compare with the bare driver",
    },
    crates::Rule {
        on: &["efgs-client", "efgs-test-ca"],
        may: May::OptionalIn(&["efgs-gateway"]),
        reason: "the release program contains neither the client nor a test PKI",
    },
    crates::Rule {
        on: &["efgs-client"],
        may: May::Only(&["efgs-gateway"]),
        reason: "a national backend's program is used by the demo alone",
    },
    crates::Rule {
        on: &["efgs-test-ca"],
        may: May::Only(&["efgs-gateway", "efgs-bench"]),
        reason: "a test PKI belongs in tests, the demo and benchmarks",
    },
    crates::Rule {
        on: &["efgs-migrations"],
        may: May::Only(&["efgs-store"]),
        reason: "the schema belongs to the store",
    },
    crates::Rule {
        on: &["tokio*", "actix-*", "hyper*", "reqwest", "sea-orm*", "sqlx*", "mysql_async", "futures*"],
        may: May::AllBut(&["efgs-protocol"]),
        reason: "national backends and auditors use it without the dependencies of a server",
    },
    crates::Rule {
        on: &["actix-*"],
        may: May::Only(&["efgs-gateway", "efgs-bench"]),
        reason: "what is below the features knows no HTTP server",
    },
];

/// Names that belong to one place.
pub(super) const NAMES: &[names::Rule] = &[
    names::Rule {
        within: &["src", "crates"],
        except: &["src/http", "src/server", "crates/client/src", "crates/object-store/src"],
        except_impl_of: &["Problem"],
        names: &[
            "StatusCode",
            "HttpResponse::*",
            "HttpResponseBuilder::*",
            "actix_http::Response::*",
            "actix_web::error::Error*",
            "actix_web::error::InternalError",
            "ResponseError",
        ],
        reason: "features answer by name: an error says its code, from which the HTTP toolkit takes the status",
    },
    names::Rule {
        within: &["src", "crates"],
        except: &[
            "src/callback/guard",
            "src/cli",
            "crates/object-store/src",
            "crates/kit/src/telemetry/traces",
            "crates/client/src",
        ],
        except_impl_of: &[],
        names: &[
            "TcpStream::connect*",
            "TcpSocket",
            "UdpSocket",
            "UnixStream::connect*",
            "UnixDatagram",
            "socket2::Socket",
            "ToSocketAddrs",
            ".to_socket_addrs",
            "lookup_host",
            "hyper::*",
            "hyper_util::*",
            "reqwest::*",
            "tokio_rustls::TlsConnector*",
            "tokio_rustls::client::*",
            "efgs_client::*",
        ],
        reason: "the server opens connections only through the callback guard, which checks the address, and to what only \
                 the operator names: the journal's store and the collector of traces",
    },
    names::Rule {
        within: &["src", "crates"],
        except: &["crates/client/src"],
        except_impl_of: &[],
        names: &["std::sync::Mutex", "std::sync::RwLock", "PoisonError"],
        reason: "locks are parking_lot's, which do not poison: a thread that broke does not take the instance with it",
    },
];
