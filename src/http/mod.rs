//! HTTP for features: errors as answers, the answers themselves, and reading headers and bodies within limits.
//! Depends on no feature.

mod body;
mod problem;
pub mod reply;
pub mod schema;

use actix_web::HttpRequest;

pub use body::{Began, BodyError, read_body};
pub use problem::{Code, Defect, Detail, Error, ErrorBody, NoOperation, Problem, Shown};

/// A request header as text, or why it cannot be used.
pub fn header<'a>(request: &'a HttpRequest, name: &'static str) -> Result<Option<&'a str>, HeaderError> {
    let mut values = request.headers().get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeaderError::Repeated(name));
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| HeaderError::NotText(name))
}

/// A request header that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The header is required.
    #[error("the header {0} is missing")]
    Missing(&'static str),
    /// The header is repeated.
    #[error("the header {0} is there more than once")]
    Repeated(&'static str),
    /// The header has characters other than visible ASCII.
    #[error("the header {0} has characters that are not visible ASCII")]
    NotText(&'static str),
}
