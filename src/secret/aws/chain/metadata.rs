//! Keys from metadata services: the container's (ECS, EKS Pod Identity) and the machine's (IMDSv2).
//!
//! Over plain HTTP nobody but this host's own metadata addresses and loopback is asked: what asks anybody else would hand
//! the pod's token to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use zeroize::Zeroizing;

use super::{Chain, Container, Fetched, Instance, is_https, is_loopback, known};
use crate::message::date::rfc3339;
use crate::secret::aws::parse_document;
use crate::secret::error::StoreFault;
use crate::secret::http::{HttpAnswer, HttpCall, configured_addresses};
use crate::secret::stores::document::Document;
use crate::secret::stores::server::StoreAddress;
use crate::upstream::guard::{AddressRange, AddressRules};

/// Where AWS serves metadata: ECS, EKS Pod Identity and EC2, each with its address of IPv6.
const ADDRESSES: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
/// Seconds that a session with IMDSv2 lives; one is opened for each look.
const SESSION: &str = "60";

/// What is said of an endpoint that [`may_ask`] refuses.
pub(super) const NOT_ALLOWED: &str = "`http` is for loopback and AWS's own metadata addresses alone (169.254.170.2, 169.254.170.23, 169.254.169.254)";

/// Whether metadata may be asked for there.
pub(super) fn may_ask(address: &StoreAddress) -> bool {
    let known = || address.target.host.ip().is_some_and(|ip| ADDRESSES.contains(&ip));
    is_https(address) || is_loopback(&address.target) || known()
}

/// The addresses that may be dialled: for plain HTTP the metadata services and loopback; for TLS, which proves the name,
/// any but those.
fn rules(address: &StoreAddress) -> AddressRules {
    if is_https(address) {
        return configured_addresses();
    }
    let own = ADDRESSES.iter().map(ToString::to_string);
    let all = own.chain(["127.0.0.0/8".to_owned(), "::1/128".to_owned()]);
    let all: Vec<AddressRange> = all.filter_map(|net| net.parse().ok()).collect();
    AddressRules { allow_private: all.clone(), allow_metadata: all }
}

impl Chain {
    /// Keys of the container.
    pub(super) async fn container(&self, config: &Container) -> Result<Fetched, StoreFault> {
        let (address, path) = match &config.endpoint {
            Some(address) => (address.clone(), address.prefix.clone()),
            None => self.container_endpoint().await?,
        };
        if !may_ask(&address) {
            return Err(StoreFault::Keys(NOT_ALLOWED));
        }
        let mut call = HttpCall::get(&address.target, if path.is_empty() { "/".to_owned() } else { path });
        if let Some(token) = self.container_token(config).await? {
            call.headers.insert(http::header::AUTHORIZATION, token);
        }
        fetched(self.send(call, rules(&address)).await?)
    }

    async fn container_endpoint(&self) -> Result<(StoreAddress, String), StoreFault> {
        if let Some(path) = self.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").await? {
            if !path.starts_with('/') {
                return Err(StoreFault::Keys(
                    "`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` does not start with `/`",
                ));
            }
            return Ok((known("http://169.254.170.2")?, path.to_string()));
        }
        let url = self.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI").await?;
        let url = url.ok_or(StoreFault::Keys("neither of the variables of a container's endpoint is set"))?;
        // The query belongs to the path, which addresses of stores do not have.
        let (origin, query) =
            url.split_once('?').map_or((&**url, None), |(origin, query)| (origin, Some(query)));
        let address = known(origin)?;
        let path = match query {
            Some(query) => format!("{}?{query}", address.prefix),
            None => address.prefix.clone(),
        };
        Ok((address, path))
    }

    async fn container_token(&self, config: &Container) -> Result<Option<HeaderValue>, StoreFault> {
        let file = match &config.token_file {
            Some(file) => Some(file.clone()),
            None => {
                self.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").await?.map(|path| path.to_string())
            }
        };
        // Read each time: the platform replaces the file.
        let token = match file {
            Some(file) => Some(self.file(&file, "container_token").await?),
            None => {
                let text = self.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN").await?;
                text.map(|text| Zeroizing::new(text.as_bytes().to_vec()))
            }
        };
        let header = |bytes: Zeroizing<Vec<u8>>| secret_header(bytes.trim_ascii());
        token.map(header).transpose()
    }

    /// Keys of the machine, by IMDSv2: a session first, which no plain GET that somebody was made to send has.
    pub(super) async fn instance(&self, config: &Instance) -> Result<Fetched, StoreFault> {
        const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
        let address = match &config.endpoint {
            Some(address) => address.clone(),
            None => match self.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").await? {
                Some(url) => known(&url)?,
                None => known("http://169.254.169.254")?,
            },
        };
        if !may_ask(&address) {
            return Err(StoreFault::Keys(NOT_ALLOWED));
        }
        let mut call = HttpCall::get(&address.target, format!("{}/latest/api/token", address.prefix));
        call.method = Method::PUT;
        call.headers.insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from_static(SESSION));
        let session = self.send(call, rules(&address)).await?;
        let header = secret_header(good(&session)?.trim_ascii())?;
        session.verdict.aside();
        let get = async |path: String| {
            let mut call = HttpCall::get(&address.target, format!("{}{path}", address.prefix));
            call.headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("x-aws-ec2-metadata-token"),
                header.clone(),
            )]);
            self.send(call, rules(&address)).await
        };
        let role = match &config.role {
            Some(role) => role.clone(),
            None => {
                let answer = get(ROLES.to_owned()).await?;
                if answer.status == StatusCode::NOT_FOUND {
                    return Err(StoreFault::Keys("the machine has no role"));
                }
                let first = good(&answer)?.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let role = String::from_utf8_lossy(first.trim_ascii()).into_owned();
                answer.verdict.aside();
                role
            }
        };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte);
        if role.is_empty() || !role.bytes().all(fits) {
            return Err(StoreFault::Garbled("the name of the machine's role is not one"));
        }
        fetched(get(format!("{ROLES}{role}")).await?)
    }
}

fn good(answer: &HttpAnswer) -> Result<&[u8], StoreFault> {
    if answer.status.is_success() {
        Ok(&answer.body)
    } else {
        Err(StoreFault::Status(answer.status.as_u16()))
    }
}

fn secret_header(bytes: &[u8]) -> Result<HeaderValue, StoreFault> {
    let value = HeaderValue::from_maybe_shared(bytes::Bytes::from_owner(Zeroizing::new(bytes.to_vec())));
    let mut value =
        value.map_err(|_| StoreFault::Keys("a token for their endpoint cannot stand in a header"))?;
    if value.is_empty() {
        return Err(StoreFault::Keys("a token for their endpoint is empty"));
    }
    value.set_sensitive(true);
    Ok(value)
}

/// The keys of an answer, and their end.
fn fetched(answer: HttpAnswer) -> Result<Fetched, StoreFault> {
    let document = Document::parse(good(&answer)?)?;
    // IMDS answers 200 also where it has none, and says so here.
    if document.text(&["Code"]).is_some_and(|code| code != "Success") {
        return Err(StoreFault::Keys("the machine's role gives no keys now"));
    }
    let keys = parse_document(&document).ok_or(StoreFault::Garbled("it holds no keys"))?;
    let ends = end(document.text(&["Expiration"]))?;
    answer.verdict.works();
    Ok(Fetched { keys, ends })
}

/// The end of keys. One that cannot be read is an error: keys without end would be used too long.
pub(super) fn end(text: Option<&str>) -> Result<Option<SystemTime>, StoreFault> {
    let read = |text| rfc3339(text).ok_or(StoreFault::Garbled("the end of the keys is not a date"));
    text.map(read).transpose()
}
