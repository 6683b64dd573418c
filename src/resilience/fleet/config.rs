//! `fleet:` as written in the policy, and as true.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::resilience::mistake::Mistakes;

/// Pods that one deployment can have.
const MAX_PODS: u32 = 1_000;
const MAX_PREFIX: usize = 64;

/// Limits that pods share.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetConfig {
    /// The Redis or Valkey through which pods share. Required.
    pub redis: Option<RedisConfig>,
    /// What a pod may spend while it cannot reach Redis: `local_share` (the limit divided by the pods), `open` (the whole
    /// limit, each pod) or `closed` (nothing). Default: `local_share`.
    pub on_outage: Option<OnOutage>,
    /// How many pods a pod takes for granted that starts while Redis is away; the most that the deployment scales to.
    /// Required by `local_share`.
    pub assume_pods: Option<u32>,
}

/// A Redis or Valkey.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// Secret reference of the URL: `redis://user:password@host:port/db`, or `rediss://` for TLS. Required.
    pub url: Option<String>,
    /// What all keys begin with: deployments with the same prefix share. Default: `outgate`.
    pub prefix: Option<String>,
}

/// What a pod may spend while it cannot reach Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnOutage {
    /// The limit divided by the pods: the sum keeps the limit.
    #[default]
    LocalShare,
    /// The whole limit, each pod.
    Open,
    /// Nothing.
    Closed,
}

/// What is true of `fleet:`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FleetSettings {
    /// Reference of the secret that holds the URL, as written.
    pub url: Arc<str>,
    /// What all keys begin with.
    pub prefix: Arc<str>,
    /// What a pod may spend while it cannot reach Redis.
    pub on_outage: OnOutage,
    /// Pods that are taken for granted by one that has not heard of others; at least 1.
    pub assume_pods: u32,
}

impl FleetConfig {
    /// Checks everything that can be checked without the secret. Whether the reference is one is for its owner to say.
    pub fn compile(&self, mistakes: &mut Mistakes) -> FleetSettings {
        let redis = self.redis.clone().unwrap_or_default();
        let url = redis.url.unwrap_or_default();
        if self.redis.is_none() {
            mistakes.hint("redis", "`redis` is missing", "for example `redis: { url: \"env:REDIS_URL\" }`");
        } else if url.is_empty() {
            mistakes.hint("redis.url", "`url` is missing", "for example `url: \"env:REDIS_URL\"`");
        } else if url.contains("://") {
            let hint = "put it into a variable or a file: `url: \"env:REDIS_URL\"`";
            mistakes.hint(
                "redis.url",
                "the URL may hold a password and is not written into the policy",
                hint,
            );
        }
        let prefix = redis.prefix.unwrap_or_else(|| "outgate".to_owned());
        let plain = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
        if prefix.is_empty() || prefix.len() > MAX_PREFIX || !prefix.chars().all(plain) {
            let hint = "1 to 64 letters, digits or `._:/-`";
            mistakes.hint("redis.prefix", "this cannot be the prefix of keys", hint);
        }
        let on_outage = self.on_outage.unwrap_or_default();
        match self.assume_pods {
            None if on_outage == OnOutage::LocalShare => mistakes.hint(
                "assume_pods",
                "`local_share` needs `assume_pods`: a pod that starts while Redis is away cannot count the others",
                "the most pods that the deployment scales to",
            ),
            Some(0) => mistakes.hint("assume_pods", "there is at least one pod: this one", "1 or more"),
            Some(pods) if pods > MAX_PODS => {
                mistakes.hint("assume_pods", "so many pods are not supported", "at most 1000");
            }
            _ => {}
        }
        let assume_pods = self.assume_pods.unwrap_or(1).clamp(1, MAX_PODS);
        FleetSettings { url: url.into(), prefix: prefix.into(), on_outage, assume_pods }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(yaml: &str) -> (FleetSettings, Vec<String>) {
        let config: FleetConfig = serde_yaml::from_str(yaml).unwrap();
        let mut mistakes = Mistakes::default();
        let settings = config.compile(&mut mistakes);
        (settings, mistakes.into_vec().into_iter().map(|mistake| mistake.message.into_owned()).collect())
    }

    #[test]
    fn defaults() {
        let (settings, mistakes) = compile("{ redis: { url: \"env:REDIS_URL\" }, assume_pods: 4 }");
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let expected = FleetSettings {
            url: "env:REDIS_URL".into(),
            prefix: "outgate".into(),
            on_outage: OnOutage::LocalShare,
            assume_pods: 4,
        };
        assert_eq!(settings, expected);
        let (settings, mistakes) =
            compile("{ redis: { url: \"file:/r\", prefix: \"a:b\" }, on_outage: closed }");
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!((settings.on_outage, settings.assume_pods), (OnOutage::Closed, 1));
    }

    #[test]
    fn every_mistake_is_told() {
        for (yaml, expected) in [
            ("{ assume_pods: 2 }", "`redis` is missing"),
            ("{ redis: {}, assume_pods: 2 }", "`url` is missing"),
            ("{ redis: { url: \"redis://:s3cret@h\" }, assume_pods: 2 }", "may hold a password"),
            ("{ redis: { url: \"env:A\", prefix: \"\" }, assume_pods: 2 }", "prefix of keys"),
            ("{ redis: { url: \"env:A\", prefix: \"{a}\" }, assume_pods: 2 }", "prefix of keys"),
            ("{ redis: { url: \"env:A\" } }", "needs `assume_pods`"),
            ("{ redis: { url: \"env:A\" }, assume_pods: 0 }", "at least one pod"),
            ("{ redis: { url: \"env:A\" }, assume_pods: 5000 }", "not supported"),
        ] {
            let (_, mistakes) = compile(yaml);
            assert_eq!(mistakes.len(), 1, "{yaml}: {mistakes:?}");
            assert!(
                mistakes[0].contains(expected) && !mistakes[0].contains("s3cret"),
                "{yaml}: {mistakes:?}"
            );
        }
        assert!(serde_yaml::from_str::<FleetConfig>("{ redis: { url: a, tls: true } }").is_err());
        assert!(serde_yaml::from_str::<FleetConfig>("{ on_outage: maybe }").is_err());
    }
}
