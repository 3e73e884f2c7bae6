//! Registering URLs to be called (spec §5.6).

use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use efgs_protocol::country::Country;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Callbacks, Refused};
use crate::{
    access_log,
    http::{Code, Error, ErrorBody, Problem, Shown, reply},
    limits::Admitted,
    store::Put,
    trust::Caller,
};

/// The maximum length of an id, in characters.
const MAX_ID: usize = 64;

/// The maximum number of callbacks of one country.
const MAX_CALLBACKS: usize = 256;

/// Why a registration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallbackError {
    /// The id is empty or too long.
    #[error("the callback id has {length} characters instead of 1 to {MAX_ID}")]
    InvalidId {
        /// The number of characters.
        length: usize,
    },
    /// The parameter `url` is missing or repeated.
    #[error("there are {found} parameters named url instead of one")]
    Url {
        /// The number of parameters.
        found: usize,
    },
    /// The country has too many callbacks. Each batch is queued for each of them.
    #[error("{country} has {MAX_CALLBACKS} callbacks already: delete one first")]
    TooMany {
        /// The country.
        country: Country,
    },
    /// The URL is not allowed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no such callback.
    #[error("there is no callback with this id")]
    Unknown,
}

impl Problem for CallbackError {
    fn code(&self) -> Code {
        match self {
            Self::InvalidId { .. } | Self::Url { .. } | Self::TooMany { .. } => Code::InvalidCallback,
            Self::Refused(_) => Code::UrlRefused,
            Self::Unknown => Code::CallbackNotFound,
        }
    }

    fn shown(&self) -> Shown {
        match self {
            Self::Refused(refused) => refused.shown(),
            Self::InvalidId { .. } | Self::Url { .. } | Self::TooMany { .. } | Self::Unknown => Shown::Text,
        }
    }
}

/// A URL that is called when there is a new batch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// The id that the country chose.
    #[schema(example = "notify-1")]
    pub callback_id: String,
    /// As it was registered.
    #[schema(example = "https://national.backend.example/notify_me")]
    pub url: String,
}

/// Lists the caller's callbacks (spec §5.6).
#[utoipa::path(
    get,
    path = "/diagnosiskeys/callback",
    tag = "callback",
    responses(
        (status = 200, description = "The caller's own callbacks.", body = [Callback], content_type = "application/json", example = json!([{"callbackId": "notify-1", "url": "https://national.backend.example/notify_me"}])),
    )
)]
pub async fn list(caller: Caller, state: web::Data<Callbacks>) -> Result<HttpResponse, Error> {
    let store = state.store.clone();
    let all = state.workers.run(async move { store.subscriptions(Some(caller.country)).await }).await??;
    let all = all.into_iter().map(|one| Callback { callback_id: one.name, url: one.url });
    Ok(reply::json(all.collect::<Vec<_>>()))
}

/// Registers a URL to be called when there is a new batch, or replaces it (spec §5.6).
///
/// For each batch the gateway calls `GET {url}?batchTag={tag}&date={yyyy-MM-dd}` and takes any 2xx for an answer.
/// It shows its own client certificate; the server must show one that is registered for the country as CALLBACK
/// or AUTHENTICATION and that names the host. Redirects are not followed.
///
/// Batches are announced in their order, each **at least once**: twice only when an instance of the gateway died
/// between the call and its record. A batch that the country has downloaded, or one before it, is not announced.
/// A call that fails is tried again after growing waits. After too many failures in a row the callback is paused
/// until it is registered again or the operator resumes it; then the newest batch is announced, from which the
/// country follows the chain.
#[utoipa::path(
    put,
    path = "/diagnosiskeys/callback/{id}",
    tag = "callback",
    params(
        ("id" = String, Path, description = "The callback's name, unique per country: 1 to 64 characters.", example = "notify-1"),
        ("url" = String, Query, description = "https, without query, fragment and user name; every address of its host is public. Percent-encoded.", example = "https://national.backend.example/notify_me"),
    ),
    responses(
        (status = 200, description = "Registered, now or before. The body is empty."),
        (status = 400, description = "The id is too long, there is not exactly one url, or the country has 256 callbacks already.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the callback id has 65 characters instead of 1 to 64", "code": "invalid-callback"})),
        (status = 406, description = "The URL fails one of the checks: length, backslash, syntax, https, userinfo, fragment, query, port, host, resolves, public-address.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the URL fails the check \"public-address\"", "code": "url-refused"})),
    )
)]
pub async fn put(
    caller: Caller,
    request: HttpRequest,
    id: web::Path<String>,
    state: web::Data<Callbacks>,
) -> Result<HttpResponse, Error> {
    let id = valid(id.into_inner())?;
    access_log::note(&request, |facts| facts.tag = Some(id.clone()));
    let parameters = url::form_urlencoded::parse(request.query_string().as_bytes());
    let mut urls = parameters.filter(|(name, _)| name == "url").map(|(_, value)| value.into_owned());
    let url = urls.next().ok_or(CallbackError::Url { found: 0 })?;
    let more = urls.count();
    if more > 0 {
        return Err(CallbackError::Url { found: more + 1 }.into());
    }
    // The DNS lookup can take long. It counts as one of the country's concurrent requests.
    let admitted = request.extensions_mut().remove::<Admitted>();
    let work = state.clone();
    state
        .workers
        .run(async move {
            let _admitted = admitted;
            work.guard.check(&url).await.map_err(CallbackError::from)?;
            let country = caller.country;
            if work.store.put_subscription(country, &id, &url, MAX_CALLBACKS).await? == Put::TooMany {
                return Err(CallbackError::TooMany { country }.into());
            }
            tracing::info!(%country, id, url, "a callback was registered");
            // It may have been paused while batches were queued.
            work.wake.notify_one();
            Ok::<_, Error>(())
        })
        .await??;
    Ok(reply::empty())
}

/// Forgets a callback, and what it has not been told (spec §5.6).
#[utoipa::path(
    delete,
    path = "/diagnosiskeys/callback/{id}",
    tag = "callback",
    params(("id" = String, Path, description = "The callback's name.", example = "notify-1")),
    responses(
        (status = 200, description = "It is not called any more. The body is empty."),
        (status = 400, description = "The id is too long.", body = ErrorBody, content_type = "application/json", example = json!({"message": "the callback id has 65 characters instead of 1 to 64", "code": "invalid-callback"})),
        (status = 404, description = "The caller has no callback with this id.", body = ErrorBody, content_type = "application/json", example = json!({"message": "there is no callback with this id", "code": "callback-not-found"})),
    )
)]
pub async fn delete(
    caller: Caller,
    request: HttpRequest,
    id: web::Path<String>,
    state: web::Data<Callbacks>,
) -> Result<HttpResponse, Error> {
    let id = valid(id.into_inner())?;
    access_log::note(&request, |facts| facts.tag = Some(id.clone()));
    let work = state.clone();
    state
        .workers
        .run(async move {
            if !work.store.delete_subscription(caller.country, &id).await? {
                return Err(CallbackError::Unknown.into());
            }
            tracing::info!(country = %caller.country, id, "a callback was deleted");
            Ok::<_, Error>(())
        })
        .await??;
    Ok(reply::empty())
}

fn valid(id: String) -> Result<String, CallbackError> {
    match id.chars().count() {
        1..=MAX_ID => Ok(id),
        length => Err(CallbackError::InvalidId { length }),
    }
}
