//! Keys of a profile: `~/.aws/credentials` and `~/.aws/config`. Only keys that stand there are used; a profile that names a
//! role, a program or a login of a person is refused in words.

use std::str;

use aws_credential_types::Credentials;

use super::{Chain, Fetched, Profile};
use crate::secret::aws::{is_plain, keys};
use crate::secret::error::{SecretError, StoreFault};

impl Chain {
    /// The keys of the profile; none where no file has it.
    pub(super) async fn profile(&self, config: &Profile) -> Result<Option<Fetched>, StoreFault> {
        let variable = self.variable("AWS_PROFILE").await?.map(|text| text.to_string());
        let asked = config.name.clone().or(variable);
        let name = asked.as_deref().unwrap_or("default");
        for (path, in_config) in self.profile_files(config).await? {
            let content = match self.file(&path, "profile").await {
                Ok(content) => content,
                Err(StoreFault::Own(error)) if matches!(*error, SecretError::NotFound { .. }) => continue,
                Err(fault) => return Err(fault),
            };
            let text =
                str::from_utf8(&content).map_err(|_| StoreFault::Keys("a profile's file is not text"))?;
            if let Some(keys) = find(text, name, in_config)? {
                return Ok(Some(Fetched { keys, ends: None }));
            }
        }
        // One that was asked for by name is not passed over for another identity.
        if asked.is_some() {
            Err(StoreFault::Keys("the profile is in neither of its files"))
        } else {
            Ok(None)
        }
    }

    /// The files, and whether sections are written as in `config`.
    async fn profile_files(&self, config: &Profile) -> Result<Vec<(String, bool)>, StoreFault> {
        if let Some(file) = &config.file {
            return Ok(vec![(file.clone(), false), (file.clone(), true)]);
        }
        let home = self.variable("HOME").await?;
        let mut files = Vec::new();
        for (variable, below, in_config) in [
            ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials", false),
            ("AWS_CONFIG_FILE", ".aws/config", true),
        ] {
            match (self.variable(variable).await?, &home) {
                (Some(file), _) => files.push((file.to_string(), in_config)),
                (None, Some(home)) => files.push((format!("{}/{below}", &***home), in_config)),
                (None, None) => {}
            }
        }
        Ok(files)
    }
}

/// The keys of a section: `[name]`, or `[profile name]` in the config file, where `default` stands alone.
fn find(text: &str, name: &str, in_config: bool) -> Result<Option<Credentials>, StoreFault> {
    let mut inside = false;
    let (mut id, mut secret, mut session) = (None, None, None);
    let mut other = false;
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            inside = is_section(section.trim(), name, in_config);
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| inside && !indented) else { continue };
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => id = Some(value),
            "aws_secret_access_key" => secret = Some(value),
            "aws_session_token" => session = Some(value),
            "role_arn" | "credential_process" | "sso_session" | "sso_start_url" => other = true,
            _ => {}
        }
    }
    match (id, secret) {
        (Some(id), Some(secret)) if is_plain(id) && is_plain(secret) && session.is_none_or(is_plain) => {
            Ok(Some(keys(id, secret, session)))
        }
        (Some(_), Some(_)) => {
            Err(StoreFault::Keys("the profile's keys hold characters that keys do not have"))
        }
        _ if other => Err(StoreFault::Keys("the profile holds no keys, but a role, a program or a login")),
        _ => Ok(None),
    }
}

fn is_section(section: &str, name: &str, in_config: bool) -> bool {
    if !in_config || (name == "default" && section == "default") {
        return section == name;
    }
    section.strip_prefix("profile").is_some_and(|rest| rest.starts_with([' ', '\t']) && rest.trim() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_as_the_tools_of_aws_read_them() {
        let text = "# keys\n[default]\naws_access_key_id = AKID1\naws_secret_access_key=CANARY1\n\n\
                    [prod]\naws_access_key_id=AKID2\naws_secret_access_key = CANARY/+2=\naws_session_token = tok==\n\
                    s3 =\n  aws_access_key_id = nested\n[role]\nrole_arn = arn:x\n[half]\naws_access_key_id=A\n";
        let id =
            |name: &str| find(text, name, false).map(|keys| keys.map(|keys| keys.access_key_id().to_owned()));
        assert_eq!(id("default").unwrap().unwrap(), "AKID1");
        let prod = find(text, "prod", false).unwrap().unwrap();
        assert_eq!(
            (prod.access_key_id(), prod.secret_access_key(), prod.session_token()),
            ("AKID2", "CANARY/+2=", Some("tok=="))
        );
        assert!(id("role").is_err());
        assert!(id("half").unwrap().is_none() && id("none").unwrap().is_none());
        let text = "[profile prod]\naws_access_key_id=A\naws_secret_access_key=CANARY\n";
        assert!(find(text, "prod", true).unwrap().is_some());
        assert!(find(text, "prod", false).unwrap().is_none());
        assert!(find(&text.replace("CANARY", "CAN ARY"), "prod", true).is_err());
    }
}
