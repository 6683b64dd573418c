//! What the compiler makes of keys that switch something off.

use super::*;
use crate::policy::tree::Sources;
use crate::policy::yaml;

fn compiled(text: &str) -> Result<CompiledPolicy, String> {
    let mut sources = Sources::new();
    let source = sources.add("p.yaml");
    let mut mistakes = Diagnostics::new();
    let tree = yaml::parse(text, source, &mut mistakes).unwrap_or_else(|| panic!("{text}"));
    let loaded = LoadedPolicy { tree, sources, hash: String::new(), files: Vec::new(), mistakes };
    compile(loaded, Path::new("/")).map_err(|rejection| rejection.render(false))
}

#[test]
fn a_fleet_that_is_off_is_none() {
    let limit = r#"{ hosts: [a.x.test], limits: [{ name: l, rate: 200/s, scope: fleet }] }"#;
    let grant = r#"{ hosts: [a.x.test], credential: { oauth2_refresh_token: { token_url: "https://idp.x.test/t", client_id: "plain:a", refresh_token: "env:R", rotates: true, store: { file: /var/lib/grant } } } }"#;
    let policy = |fleet: &str, provider: &str| {
        compiled(&format!("version: 1\n{fleet}\nproviders:\n  a: {provider}\n"))
    };
    let redis = r#"fleet: { redis: { url: "env:REDIS_URL" }, assume_pods: 2 }"#;
    for (fleet, on) in [("", false), ("fleet: off", false), ("fleet:", false), (redis, true)] {
        assert_eq!(policy(fleet, limit).is_ok(), on, "{fleet}");
        assert_eq!(policy(fleet, grant).is_ok(), !on, "{fleet}");
    }
    // A mistake of its own is the only one that is told.
    let told = policy("fleet: { redis: 5 }", limit).err().unwrap();
    assert!(!told.contains("needs the key `fleet`"), "{told}");
}
