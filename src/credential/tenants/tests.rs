//! Bounds of the tenants, with files, on paused time.

mod endpoint;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::credential::CredentialConfig;
use crate::secret::Stores;
use crate::secret::fake::upstream_env;

struct Rig {
    credentials: Credentials,
    cache: Arc<SecretCache>,
    metrics: crate::telemetry::Metrics,
    _stop: tokio_util::sync::DropGuard,
    _directory: tempfile::TempDir,
}

/// `known` tenants have a file.
fn rig(text: &str, known: usize) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..known {
        std::fs::write(directory.path().join(format!("t{number}")), format!("secret-of-{number}")).unwrap();
    }
    let config: CredentialConfig = serde_yaml::from_str(text).unwrap();
    let members = config.members(directory.path()).unwrap();
    let cache = Arc::new(SecretCache::new(Stores::built_in(directory.path())));
    let metrics = crate::telemetry::Metrics::new();
    let env = TokenEnv::new(upstream_env());
    let credentials = Credentials::bind(&members, &cache, &env, metrics.provider("api"));
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "a test")]
    tokio::spawn(cache.clone().run(stop.clone()));
    Rig { credentials, cache, metrics, _stop: stop.drop_guard(), _directory: directory }
}

impl Rig {
    fn tenants(&self) -> usize {
        match &self.credentials {
            Credentials::One(_) => 0,
            Credentials::PerTenant(tenants) => tenants.seats().by_name.len(),
        }
    }

    /// The counts of the overlap's events.
    fn told(&self) -> Vec<(&'static str, u64)> {
        let text = self.metrics.encode();
        let count = |event| {
            let line = format!("outgate_credential_overlap_total{{provider=\"api\",event=\"{event}\"}} ");
            let count = text.lines().find_map(|found| found.strip_prefix(line.as_str()));
            (event, count.unwrap().parse().unwrap())
        };
        vec![count("old_needed"), count("safe_to_remove")]
    }

    fn is_live(&self, name: &str) -> bool {
        self.credentials.live(Some(name)).is_some()
    }

    async fn use_of(&self, name: &str) -> bool {
        let credential = self.credentials.of(Some(name)).unwrap();
        credential.obtain(0).await.is_ok()
    }
}

const BEARER: &str = "{ bearer: \"file:{tenant}\" }";

#[tokio::test]
async fn without_a_placeholder_there_is_one_for_all() {
    let rig = rig("{ bearer: file:t0 }", 1);
    let [none, one] = [None, Some("t1")].map(|tenant| rig.credentials.of(tenant).unwrap());
    assert!(Arc::ptr_eq(&none, &one));
}

#[tokio::test]
async fn each_has_its_own_and_who_names_none_has_none() {
    let rig = rig(BEARER, 2);
    assert!(rig.use_of("t0").await && rig.use_of("t1").await && !rig.use_of("t2").await);
    let [zero, one] = ["t0", "t1"].map(|name| rig.credentials.version(Some(name)));
    assert!(zero != one && zero != 0 && one != 0);
    assert!(!rig.credentials.is_available(Some("t2")) && rig.credentials.is_available(Some("t0")));
    assert!(matches!(rig.credentials.of(None), Err(CredentialError::NoTenant)));
    assert!(matches!(rig.credentials.of(Some("../t0")), Err(CredentialError::Secret { .. })));
    // Asking for one whose name does not fit leaves nothing behind.
    assert_eq!(rig.tenants(), 3);
    assert_eq!(&*rig.credentials.references()[0], "file:{tenant}");
    assert!(rig.credentials.can_heal());
}

#[tokio::test]
async fn there_are_never_more_than_a_thousand_and_unknown_names_push_out_nobody_who_works() {
    let rig = rig(BEARER, 10);
    for number in 0..10 {
        assert!(rig.use_of(&format!("t{number}")).await);
    }
    for number in 0..2000 {
        rig.credentials.of(Some(&format!("unknown-{number}"))).unwrap();
        assert!(rig.tenants() <= MOST);
    }
    assert!((0..10).all(|number| rig.is_live(&format!("t{number}"))));
    assert!(rig.is_live("unknown-1999") && !rig.is_live("unknown-0"));
    // Their secrets went with them.
    assert!(rig.cache.tenant_secrets()[0].tenants <= MOST);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_named_for_an_hour_goes() {
    let rig = rig(BEARER, 2);
    assert!(rig.use_of("t0").await && rig.use_of("t1").await);
    tokio::time::advance(IDLE / 2).await;
    assert!(rig.use_of("t1").await);
    tokio::time::advance(IDLE / 2 + Duration::from_secs(1)).await;
    rig.credentials.sweep();
    assert!(!rig.is_live("t0") && rig.is_live("t1"));
    // A read that the clock began may hold its secret for another moment.
    while rig.cache.tenant_secrets()[0].tenants > 1 {
        tokio::task::yield_now().await;
    }
    // A request for another tenant does the same.
    tokio::time::advance(IDLE + Duration::from_secs(1)).await;
    assert!(rig.use_of("t0").await);
    assert!(!rig.is_live("t1"));
}

#[tokio::test]
async fn of_a_list_each_tenant_has_its_own_preference() {
    let rig = rig("{ bearer: [\"file:{tenant}\", \"file:t0\"] }", 3);
    assert!(rig.use_of("t1").await && rig.use_of("t2").await);
    let worked = |name: &str, choice| Heal::worked(&rig.credentials, Some(name), choice);
    worked("t1", 1);
    let preferred = |name: &str| Heal::preferred(&rig.credentials, Some(name));
    assert_eq!((preferred("t1"), preferred("t2"), preferred("nobody")), (1, 0, 0));
    assert!(!rig.is_live("nobody"), "nobody is bound by being asked for");
}

#[tokio::test(start_paused = true)]
async fn rotation_is_told_for_each_tenant_apart_and_once() {
    let rig = rig("{ bearer: [\"file:{tenant}\", \"file:t0\"] }", 3);
    assert!(rig.use_of("t1").await && rig.use_of("t2").await && rig.credentials.overlaps());
    let accepted = |name: &str, choice| Heal::accepted(&rig.credentials, Some(name), choice, true);
    accepted("t1", 0);
    accepted("t2", 1);
    accepted("t2", 1);
    for _ in 0..70 {
        tokio::time::advance(Duration::from_secs(60)).await;
        accepted("t1", 0);
    }
    // What shows nothing is no acceptance.
    Heal::accepted(&rig.credentials, Some("t2"), 0, false);
    let told = rig.told();
    assert_eq!(told, [("old_needed", 2), ("safe_to_remove", 1)]);
}
