use super::*;

#[test]
fn mistakes_are_told_in_the_policys_own_file() {
    for (provider, told) in [
        (
            "preset: strip",
            "p.yaml:3:16: providers.p.preset: there is no such preset\n  did you mean `stripe`?",
        ),
        (
            "preset: zzzzzz",
            "p.yaml:3:16: providers.p.preset: there is no such preset\n  `outgate presets` lists them",
        ),
        (
            "hosts: [a.test], with: { a: b }",
            "p.yaml:3:31: providers.p.with: parameters of a preset, and none is named",
        ),
        ("preset: 3", "p.yaml:3:16: providers.p.preset: expected a text"),
        ("preset: zendesk", "p.yaml:3:16: providers.p.with: the preset needs `subdomain`"),
        (
            "preset: zendesk, with: { subdomain: a.b }",
            "p.yaml:3:44: providers.p.with.subdomain: not a value of this parameter\n  it looks like `[a-z0-9]",
        ),
        (
            "preset: zendesk, with: { subdomain: a, sub: b }",
            "p.yaml:3:47: providers.p.with.sub: the preset has no such parameter",
        ),
        (
            "preset: paypal, with: { environment: prod }",
            "providers.p.with.environment: not a value of this parameter\n  possible here: `live`, `sandbox`",
        ),
        ("preset: adyen", "providers.p.with: `environment: live` needs `prefix`"),
        (
            "preset: stripe, credential: { secrt: env:K }",
            "p.yaml:3:38: providers.p.credential.secrt: unknown key\n  did you mean `secret`?",
        ),
        (
            "preset: twilio, credential: { account_sid: env:K }",
            "providers.p.credential: missing key `auth_token`",
        ),
        (
            "preset: stripe, credential: { secret: env:K, more: env:L }",
            "providers.p.credential.more: unknown key",
        ),
        ("preset: stripe, credential: { secret: sk_live_0123 }", "p.yaml:3:46: providers.p.credential"),
        (
            "preset: zendesk, with: { subdomain: a }, credential: { email: a b, secret: env:K }",
            "providers.p.credential.email: expected a text",
        ),
        ("preset: stripe, credential: { bearer: env:K, basic: {} }", "providers.p.credential"),
        ("preset: stripe, retry: { atempts: 3 }", "providers.p.retry.atempts: unknown key"),
        (
            "preset: stripe, limits: [{ name: account, rate: 0/s }]",
            "providers.p.limits[0].rate: a limit of zero",
        ),
        (
            "preset: stripe, limits: [{ name: more, rate: 5/s }, { name: most, rate: 0/s }]",
            "p.yaml:3:80: providers.p.limits[1].rate: a limit of zero",
        ),
        (
            "preset: stripe, routes: [{ match: {}, limits: [{ name: more, rate: 0/s }] }]",
            "p.yaml:3:75: providers.p.routes[0].limits[0].rate: a limit of zero",
        ),
        (
            "preset: stripe, routes: [{ name: \"preset:files\", match: {} }]",
            "another route of this provider has the same name",
        ),
    ] {
        let text = format!("version: 1\nproviders:\n  p: {{ {provider} }}\n");
        let error = compiled(&text).map(|_| ()).unwrap_err();
        assert!(error.contains(told), "{provider}\n{error}");
        assert!(!error.contains("sk_live_") && !error.contains("preset stripe:"), "{error}");
        assert_eq!(error.matches("p.yaml").count(), 1, "one mistake, told once: {error}");
    }
    // A wrong parameter hides nothing else, and what a sample stands for is nobody's host.
    for parameter in ["subdomain: a.b", "sub: b"] {
        let wrong = format!(
            "preset: zendesk, with: {{ {parameter} }}, retry: {{ attempts: 0 }}, credential: {{ secrt: env:K }}"
        );
        let text = format!("version: 1\nproviders:\n  p: {{ {wrong} }}\n  q: {{ {wrong} }}\n");
        let error = compiled(&text).map(|_| ()).unwrap_err();
        for told in [
            "providers.p.with",
            "providers.p.retry.attempts",
            "providers.q.retry.attempts",
            "credential.secrt",
        ] {
            assert!(error.contains(told), "{told}\n{error}");
        }
        assert!(!error.contains("host") && !error.contains("acme.zendesk"), "{error}");
    }
    let error = compiled("version: 1\ndefaults: { preset: stripe }\nproviders: {}").map(|_| ()).unwrap_err();
    assert!(error.contains("`preset` belongs to one provider"), "{error}");
}

#[test]
fn without_a_credential_somebody_should_know() {
    let policy = compiled("version: 1\nproviders: { s: { preset: stripe } }").unwrap();
    assert_eq!(policy.warnings.len(), 1);
    assert!(policy.warnings[0].contains("credential: { secret: env:NAME }"), "{:?}", policy.warnings);
}

/// An overlap of two keys, and `required`, go through the short form.
#[test]
fn the_short_form_takes_what_the_kind_takes() {
    let policy =
        compiled("version: 1\nproviders: { s: { preset: stripe, credential: { secret: [env:NEW, env:OLD], required: true } } }")
            .unwrap();
    assert_eq!(policy.providers[0].routes[0].settings.credential.len(), 2);
    assert!(policy.secrets.iter().all(|used| used.required));
    // Without the application key Datadog gets one header.
    for (credential, parts) in [
        ("{ api_key: env:A }", 1),
        ("{ api_key: env:A, application_key: env:B }", 2),
        ("{ access_token: env:T }", 1),
    ] {
        let text = format!("version: 1\nproviders: {{ d: {{ preset: datadog, credential: {credential} }} }}");
        assert_eq!(
            compiled(&text).unwrap().providers[0].routes[0].settings.credential[0].parts.len(),
            parts,
            "{credential}"
        );
    }
}
