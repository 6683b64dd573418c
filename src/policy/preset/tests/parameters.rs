use super::*;

#[test]
fn parameters_cannot_leave_their_place() {
    let hostile = [
        "evil.test/",
        "a.evil.test",
        "a/b",
        "a@b",
        "a:1",
        "*",
        "",
        "a b",
        "${x}",
        "A\u{e4}",
        "-a",
        "a%2f",
        "127.0.0.1",
        "10.1",
        "169.254.169.254",
        "1.2.3.0x7f",
        "a.1",
        "[::1]",
        "a..b",
        "a.b.",
        "a.b-",
        "localhost.",
    ];
    for (name, preset) in all() {
        for (parameter, says) in &preset.header.parameters {
            assert_eq!(says.pattern.is_some(), says.values.is_empty(), "{name} {parameter}");
            assert!(says.default.is_none() || !says.required, "{name} {parameter}");
            for value in hostile {
                // A whole domain is a host of its own; it is the only one with dots.
                let domain = parameter == "custom_domain" && ["a.evil.test", "a..b"].contains(&value);
                assert!(domain || !says.allows(value), "{name} {parameter}: {value}");
            }
            for value in says.sample.iter().chain(&says.default) {
                assert!(says.allows(value), "{name} {parameter}: {value}");
            }
        }
        for with in with_each(&preset) {
            let text = format!(
                "version: 1\nproviders:\n  p: {{ preset: {name}, with: {{ {with} }}, credential: none }}\n"
            );
            for host in &compiled(&text).unwrap().providers[0].host_names {
                assert!(
                    HostPattern::parse(host).is_ok() && !host.contains(['$', '{', '/']),
                    "{name}: {host}"
                );
            }
        }
    }
}

/// A tenant's domain is one of Auth0's, and its own is said to be: any name, and no address.
#[test]
fn a_domain_is_the_providers_or_said_to_be_custom() {
    let hosts = |with: &str| {
        let policy = format!(
            "version: 1\nproviders: {{ a: {{ preset: auth0, with: {{ {with} }}, credential: none }} }}"
        );
        compiled(&policy).map(|policy| policy.providers[0].host_names.clone())
    };
    for name in ["acme.auth0.com", "acme.eu.auth0.com", "dev-1x.us.auth0.com"] {
        assert_eq!(hosts(&format!("domain: \"{name}\"")), Ok(vec![name.to_owned()]));
    }
    for name in ["acme.example", "auth0.com", ".auth0.com", "acme.auth0.com.evil.example", "evilauth0.com"] {
        assert!(hosts(&format!("domain: \"{name}\"")).is_err(), "{name}");
    }
    let custom = |name: &str| hosts(&format!("domain: acme.auth0.com, custom_domain: \"{name}\""));
    for name in ["login.acme.co.uk", "id.acme.xn--p1ai", "1.acme.io", "a.b.test"] {
        assert_eq!(custom(name), Ok(vec!["acme.auth0.com".to_owned(), name.to_owned()]));
    }
    for name in
        ["127.0.0.1", "169.254.169.254", "0x7f.1", "1.2.3.0x7f", "acme", "acme..com", "a.1", "acme.com."]
    {
        assert!(custom(name).is_err(), "{name}");
    }
}

/// A parameter stands for other hosts than where it is absent.
#[test]
fn a_tenant_has_hosts_of_its_own() {
    let hosts = |with: &str| {
        let policy = format!(
            "version: 1\nproviders: {{ g: {{ preset: github, credential: {{ secret: env:K }}{with} }} }}"
        );
        let policy = compiled(&policy).unwrap();
        ["api.github.com", "uploads.github.com", "api.acme.ghe.com"]
            .map(|host| policy.connect(&crate::message::target::Host::parse(host).unwrap(), 443).is_ok())
    };
    assert_eq!(hosts(""), [true, true, false]);
    assert_eq!(hosts(", with: { enterprise: acme }"), [false, false, true]);
}

/// The texts that go into a URL look like what they are.
#[test]
fn parts_and_regions_that_lead_elsewhere_are_refused() {
    let azure = |tenant: &str| {
        compiled(&format!(
            "version: 1\nproviders: {{ a: {{ preset: azure-openai, with: {{ resource: acme }}, credential: {{ entra: {{ tenant: \"{tenant}\", client_id: \"plain:c\", client_secret: env:K }} }} }} }}"
        ))
    };
    assert!(azure("72f988bf-86f1-41af-91ab-2d7cd011db47").is_ok() && azure("acme.onmicrosoft.com").is_ok());
    for tenant in ["x/../../evil", "a?b", "a#b", ".."] {
        let told = azure(tenant).err().unwrap();
        assert!(told.contains("looks like"), "{tenant}: {told}");
    }
    for preset in ["aws-s3", "aws-ses", "aws-sns"] {
        let region = |region: &str| {
            compiled(&format!(
                "version: 1\nproviders: {{ a: {{ preset: {preset}, with: {{ region: {region} }}, credential: none }} }}"
            ))
        };
        assert!(region("eu-west-1").is_ok() && region("ca-central-1").is_ok(), "{preset}");
        assert!(region("cn-north-1").is_err(), "{preset}");
    }
    let both = "version: 1\nproviders: { m: { preset: mailchimp, with: { dc: us1 }, credential: { secret: env:K, token: env:T } } }";
    let told = compiled(both).err().unwrap();
    assert!(told.contains("unknown key") && !told.contains("did you mean `token`"), "{told}");
}
