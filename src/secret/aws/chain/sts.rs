//! Keys of a role by a web identity (IRSA): STS takes the pod's token and gives keys for an hour.
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>

use super::metadata::end;
use super::{Chain, Fetched, WebIdentity, is_region_text, known};
use crate::secret::aws::keys;
use crate::secret::error::StoreFault;
use crate::secret::form::Form;
use crate::secret::http::configured_addresses;
use crate::secret::stores::server::{Plaintext, StoreAddress};

impl Chain {
    /// Exchanges the token. The file is read each time: the platform replaces it.
    pub(super) async fn web_identity(&self, config: &WebIdentity) -> Result<Fetched, StoreFault> {
        let role = self.named(config.role_arn.as_deref(), "AWS_ROLE_ARN").await?;
        let role = role.ok_or(StoreFault::Keys("neither `role_arn` nor AWS_ROLE_ARN names the role"))?;
        let file = self.named(config.token_file.as_deref(), "AWS_WEB_IDENTITY_TOKEN_FILE").await?;
        let file = file.ok_or(StoreFault::Keys(
            "neither `token_file` nor AWS_WEB_IDENTITY_TOKEN_FILE names the token",
        ))?;
        let session = self.named(config.session_name.as_deref(), "AWS_ROLE_SESSION_NAME").await?;
        let token = self.file(&file, "web_identity_token").await?;
        let form = form(&role, session.as_deref().unwrap_or("outgate"), token.trim_ascii());
        let address = self.sts(config).await?;
        let mut call = form.call(&address.target, format!("{}/", address.prefix));
        // Every role has the same path.
        call.subject = Some(role.clone());
        let answer = self.send(call, configured_addresses()).await?;
        if !answer.status.is_success() {
            return Err(StoreFault::Login(Box::new(StoreFault::Status(answer.status.as_u16()))));
        }
        let text = std::str::from_utf8(&answer.body).map_err(|_| StoreFault::Garbled("it is not text"))?;
        let fetched = read(text)?;
        answer.verdict.works();
        Ok(fetched)
    }

    async fn named(&self, written: Option<&str>, variable: &str) -> Result<Option<String>, StoreFault> {
        match written {
            Some(text) => Ok(Some(text.to_owned())),
            None => Ok(self.variable(variable).await?.map(|text| text.to_string())),
        }
    }

    async fn sts(&self, config: &WebIdentity) -> Result<StoreAddress, StoreFault> {
        if let Some(address) = &config.endpoint {
            if address.check_plaintext(Plaintext::Deny).is_some() {
                return Err(StoreFault::Keys("the token would go over plain http"));
            }
            return Ok(address.clone());
        }
        let region = match self.named(config.region.as_deref(), "AWS_REGION").await? {
            Some(region) => Some(region),
            None => self.named(None, "AWS_DEFAULT_REGION").await?,
        };
        match region {
            // It becomes part of a host name that gets the token.
            Some(region) if !is_region_text(&region) => Err(StoreFault::Keys("the region is not one")),
            Some(region) if region.starts_with("cn-") => {
                known(&format!("https://sts.{region}.amazonaws.com.cn"))
            }
            Some(region) => known(&format!("https://sts.{region}.amazonaws.com")),
            None => known("https://sts.amazonaws.com"),
        }
    }
}

fn form(role: &str, session: &str, token: &[u8]) -> Form {
    Form::default()
        .field("Action", b"AssumeRoleWithWebIdentity")
        .field("Version", b"2011-06-15")
        .field("RoleArn", role.as_bytes())
        .field("RoleSessionName", session.as_bytes())
        .field("WebIdentityToken", token)
}

/// STS answers in XML: four elements of known names, whose texts have nothing to escape.
fn read(text: &str) -> Result<Fetched, StoreFault> {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (inner, _) = rest.split_once(&format!("</{name}>"))?;
        let inner = inner.trim();
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"<>&\"\\".contains(&byte);
        (!inner.is_empty() && inner.bytes().all(fits)).then_some(inner)
    };
    let part = |name| element(name).ok_or(StoreFault::Garbled("it holds no keys"));
    let keys = keys(part("AccessKeyId")?, part("SecretAccessKey")?, Some(part("SessionToken")?));
    let ends = end(Some(part("Expiration")?))?;
    Ok(Fetched { keys, ends })
}
