//! An API that wants a bearer token which a login gives: how the stores of Google Cloud and Azure are read.

use std::time::Duration;

use http::StatusCode;
use http::header::AUTHORIZATION;
use tokio::time::Instant;

use super::document::Document;
use super::server::{Token, TokenSlot, secret_header};
use crate::message::target::Target;
use crate::secret::error::StoreFault;
use crate::secret::http::{HttpAnswer, HttpCall, HttpClient};

/// A token younger than this is not replaced because it was refused: a new one would be refused as well.
const YOUNG: Duration = Duration::from_secs(60);

/// The API of one store, and the token it is asked with.
pub struct BearerApi {
    client: HttpClient,
    target: Target,
    token: TokenSlot,
}

impl BearerApi {
    /// An API at `target`.
    #[must_use]
    pub fn new(client: HttpClient, target: Target) -> Self {
        Self { client, target, token: TokenSlot::default() }
    }

    /// What `value` reads in the document at `path`. `login` gets a token where there is none, or the API does not take it any
    /// more.
    ///
    /// # Errors
    /// No token, no answer, or another answer than a document that `value` can read.
    pub async fn get<T, Login, Fetched>(
        &self,
        path: &str,
        login: Login,
        value: impl FnOnce(&Document) -> Result<T, StoreFault>,
    ) -> Result<T, StoreFault>
    where
        Login: Fn() -> Fetched,
        Fetched: Future<Output = Result<Token, StoreFault>>,
    {
        let token = self.token.get(|_| login()).await?;
        let mut answer = self.ask(path, &token).await?;
        if answer.status == StatusCode::UNAUTHORIZED && token.born.elapsed() > YOUNG {
            // Before the login: as long as it counts as running, others wait for it, and with them who logs in.
            answer.verdict.aside();
            self.token.forget(&token);
            let token = self.token.get(|_| login()).await?;
            answer = self.ask(path, &token).await?;
        }
        let read = match answer.status {
            StatusCode::OK => Document::parse(&answer.body).and_then(|document| value(&document)),
            StatusCode::NOT_FOUND => Err(StoreFault::NotFound),
            status => Err(StoreFault::Status(status.as_u16())),
        };
        if matches!(read, Ok(_) | Err(StoreFault::NotFound)) {
            answer.verdict.works();
        }
        read
    }

    async fn ask(&self, path: &str, token: &Token) -> Result<HttpAnswer, StoreFault> {
        let mut call = HttpCall::get(&self.target, path.to_owned());
        call.headers.insert(AUTHORIZATION, token.header.clone());
        Ok(self.client.send(call).await?)
    }
}

/// The token of an OAuth answer: `access_token` and `expires_in` (a number, or one in a string).
///
/// # Errors
/// The login was refused, or its answer has no token.
pub async fn login(client: &HttpClient, call: HttpCall) -> Result<Token, StoreFault> {
    request(client, call).await.map_err(|fault| StoreFault::Login(Box::new(fault)))
}

async fn request(client: &HttpClient, call: HttpCall) -> Result<Token, StoreFault> {
    let born = Instant::now();
    let answer = client.send(call).await?;
    if answer.status != StatusCode::OK {
        return Err(StoreFault::Status(answer.status.as_u16()));
    }
    let document = Document::parse(&answer.body)?;
    let token = document.text(&["access_token"]).filter(|token| !token.is_empty());
    let token = token.ok_or(StoreFault::Garbled("a login without `access_token`"))?;
    let seconds =
        document.number(&["expires_in"]).ok_or(StoreFault::Garbled("a login without `expires_in`"))?;
    let ends = Some(born + Duration::from_secs(seconds.min(u64::from(u32::MAX))));
    let header = secret_header(&[b"Bearer ", token.as_bytes()])?;
    answer.verdict.works();
    Ok(Token { header, born, ends, renewable: false })
}
