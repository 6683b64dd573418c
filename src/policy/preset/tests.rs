use std::collections::BTreeSet;

use super::fill::Filling;
use super::header::{Confidence, Parameter};
use super::*;
use crate::credential::CredentialConfig;
use crate::policy::compile::compile;
use crate::policy::compiled::CompiledPolicy;
use crate::policy::diagnostic::Rejection;
use crate::policy::load::LoadedPolicy;
use crate::policy::pattern::HostPattern;
use crate::policy::schema::RouteConfig;

mod overriding;
mod removal;

/// Compiles a policy's text.
fn compiled(text: &str) -> Result<CompiledPolicy, String> {
    let mut sources = Sources::new();
    let source = sources.add("p.yaml");
    let mut mistakes = Diagnostics::new();
    let Some(tree) = yaml::parse(text, source, &mut mistakes) else {
        return Err(Rejection::new(mistakes, sources).render(false));
    };
    let loaded = LoadedPolicy { tree, sources, hash: String::new(), files: Vec::new() };
    compile(loaded, std::path::Path::new("/")).map_err(|rejection| rejection.render(false))
}

fn all() -> Vec<(&'static str, Preset)> {
    names()
        .map(|name| {
            let mut sources = Sources::new();
            let source = sources.add(title(name));
            let mut mistakes = Diagnostics::new();
            let preset = Preset::read(text(name).unwrap(), source, &mut mistakes);
            let told = Rejection::new(mistakes.clone(), sources).render(false);
            assert!(mistakes.is_empty(), "{told}");
            (name, preset.unwrap())
        })
        .collect()
}

/// Every way to give the parameters: those that must be given, and each word of each choice once.
fn with_each(preset: &Preset) -> Vec<String> {
    let parameters = &preset.header.parameters;
    let sample = |name: &str, parameter: &Parameter| {
        let sample = parameter.sample.as_ref().unwrap_or_else(|| panic!("`{name}` has no sample"));
        format!("{name}: \"{sample}\"")
    };
    let given: Vec<String> = parameters
        .iter()
        .filter(|(_, parameter)| parameter.pattern.is_some())
        .map(|(name, parameter)| sample(name, parameter))
        .collect();
    let needed: Vec<String> = parameters
        .iter()
        .filter(|(name, parameter)| parameter.required || *name == "prefix")
        .map(|(name, parameter)| sample(name, parameter))
        .collect();
    let mut all = vec![needed.join(", "), given.join(", ")];
    for (name, parameter) in parameters {
        for word in parameter.values.keys() {
            all.push([&given[..], &[format!("{name}: {word}")]].concat().join(", "));
        }
    }
    all
}

/// A credential of each way, in the short form.
fn credentials(preset: &Preset) -> Vec<String> {
    let value = |part: &credential::Part| match part.sample() {
        "text" => {
            let fits = |text: &&str| part.pattern.as_ref().is_none_or(|pattern| pattern.matches(text));
            ["text@acme.test", "acme.test", "TEXT123456"].into_iter().find(fits).unwrap()
        }
        sample => sample,
    };
    preset
        .credentials
        .iter()
        .enumerate()
        .map(|(index, way)| {
            let parts: Vec<String> =
                preset.parts(way).iter().map(|part| format!("{}: {}", part.name, value(part))).collect();
            let parts = parts.join(", ");
            if index == 0 { format!("{{ {parts} }}") } else { format!("{{ {}: {{ {parts} }} }}", way.key) }
        })
        .collect()
}

#[test]
fn the_list_is_that_of_the_files() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/presets");
    let files: BTreeSet<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().trim_end_matches(".yaml").to_owned())
        .collect();
    let listed: Vec<&str> = names().collect();
    assert!(listed.is_sorted(), "presets are found by bisection: {listed:?}");
    assert_eq!(files, listed.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(listed.len(), 51);
}

/// With every choice of every parameter: a preset has no mistake that a user could meet.
#[test]
fn every_preset_compiles() {
    for (name, preset) in all() {
        for with in with_each(&preset) {
            let policy = format!(
                "version: 1\nproviders:\n  p: {{ preset: {name}, with: {{ {with} }}, credential: none }}\n"
            );
            let policy = compiled(&policy).unwrap_or_else(|told| panic!("{name} {with}: {told}"));
            let provider = &policy.providers[0];
            assert!(!provider.host_names.is_empty(), "{name} {with}");
            assert!(policy.warnings.is_empty(), "{name} {with}: {:?}", policy.warnings);
            assert!(provider.intercept.intercept, "{name}: what it knows wants to see requests");
        }
    }
}

#[test]
fn every_way_of_a_credential_compiles() {
    let mut wrong = Vec::new();
    for (name, preset) in all() {
        let with = &with_each(&preset)[1];
        for (way, credential) in preset.ways().map(str::to_owned).zip(credentials(&preset)) {
            let policy = format!(
                "version: 1\nproviders:\n  p: {{ preset: {name}, with: {{ {with} }}, credential: {credential} }}\n"
            );
            match compiled(&policy) {
                Ok(policy) => {
                    let credential = &policy.providers[0].routes[0].settings.credential;
                    assert!(!credential.is_empty(), "{name} {way}");
                    assert!(policy.warnings.is_empty(), "{name}: {:?}", policy.warnings);
                }
                Err(told) => wrong.push(format!("{name} {way}: {told}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn presets_routes_count_nothing_that_others_count() {
    for (name, preset) in all() {
        for key in
            ["credential", "preset", "with", "local", "doors", "intercept", "upstream", "mode", "tenant"]
        {
            assert!(preset.base.get(key).is_none(), "{name} says `{key}`");
        }
        let nothing = preset.header.parameters.keys().map(|name| (name.clone(), Filling::Nothing)).collect();
        for node in &preset.routes {
            let node = fill::fill(node, &nothing).unwrap();
            let route: RouteConfig = decode(&node, &PolicyPath::root(), &mut Diagnostics::new()).unwrap();
            assert!(route.credential.is_none() && route.name.is_some(), "{name}");
            assert!(route.breaker.is_none() && route.cache.is_none() && route.mode.is_none(), "{name}");
        }
        let names: BTreeSet<&str> =
            preset.routes.iter().filter_map(|route| route.get("name")?.as_str()).collect();
        assert_eq!(names.len(), preset.routes.len(), "{name}: two routes of one name");
    }
}

/// Words that could be taken for something else.
#[test]
fn ways_and_parts_have_names_of_their_own() {
    for (name, preset) in all() {
        assert!(!preset.credentials.is_empty(), "{name}");
        let ways: BTreeSet<&str> = preset.ways().collect();
        for (index, way) in preset.credentials.iter().enumerate() {
            assert!(
                !credential::KINDS.contains(&way.key.as_str()) && way.key != "required",
                "{name} {}",
                way.key
            );
            let parts = preset.parts(way);
            assert!(!parts.is_empty(), "{name} {}", way.key);
            for part in parts {
                let free = !credential::KINDS.contains(&part.name.as_str()) && part.name != "required";
                // A single key is a way's name before it is a part.
                let alone = index > 0 || !ways.contains(part.name.as_str());
                assert!(free && alone, "{name} {} {}", way.key, part.name);
            }
        }
    }
}

#[test]
fn the_kinds_are_those_of_the_schema() {
    let schema = schemars::schema_for!(CredentialConfig).to_value();
    let kinds = schema.pointer("/anyOf/1/properties").unwrap().as_object().unwrap();
    for kind in kinds.keys().filter(|kind| *kind != "required") {
        assert!(credential::KINDS.contains(&kind.as_str()), "`{kind}` is a kind that presets do not know");
    }
}

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

/// Where the facts are not sure, nothing is repeated that may act, and no number is kept.
#[test]
fn what_is_not_sure_stays_on_the_safe_side() {
    for (name, preset) in all() {
        assert!(!preset.header.sources.is_empty(), "{name} names no source");
        if preset.header.confidence == Confidence::Low {
            assert_eq!(preset.base.get("retry").and_then(Node::as_str), Some("off"), "{name}");
            assert!(preset.base.get("limits").is_none(), "{name}");
        }
    }
}

#[test]
fn what_a_policy_writes_wins_key_by_key() {
    let policy = compiled(
        "version: 1\ndefaults:\n  retry: { attempts: 7, max_retry_after: 5s }\n  timeouts: { response: 9s }\nproviders:\n  stripe:\n    preset: stripe\n    credential: { secret: env:K }\n    timeouts: { deadline: 33s }\n    responses: [{ when: { status: 418 }, is: overload }]\n    limits: [{ name: account, rate: 7/s }, { name: more, rate: 1/s }]\n    routes:\n      - { match: { path: \"/v1/refunds/**\" }, deny: \"no\" }\n      - { name: own, match: { path: \"/v1/files/x\" }, timeouts: { response: 1s } }\n      - { name: quiet, match: { methods: [GET], path: /v1/quiet }, retry: off }\n",
    )
    .unwrap();
    let decide = |method: http::Method, path: &str| {
        let chosen = policy.route(0, &method, path).unwrap();
        (chosen.settings.name.to_string(), &chosen.settings.settings)
    };
    let (name, own) = decide(http::Method::POST, "/v1/charges");
    assert_eq!(name, "preset:v1");
    let retry = &own.layers.retry.as_ref().unwrap().settings;
    assert_eq!((retry.attempts, retry.max_retry_after.as_secs()), (7, 5), "defaults below the preset");
    assert_eq!(retry.hint.as_ref().unwrap().as_str(), "stripe-should-retry", "the preset above them");
    assert_eq!((own.timeouts.response.as_secs(), own.timeouts.deadline.as_secs()), (9, 33));
    let limits: Vec<(&str, u32)> =
        own.layers.limits.iter().map(|limit| (&*limit.settings.name, limit.settings.rate.count())).collect();
    assert_eq!(limits, [("account", 7), ("more", 1)]);
    assert!(
        own.layers.responses
            != compiled("version: 1\nproviders: { s: { preset: stripe, credential: none } }")
                .unwrap()
                .providers[0]
                .routes
                .last()
                .unwrap()
                .settings
                .layers
                .responses
    );
    // The preset's route is below the provider's own keys, and above the preset's.
    let (name, files) = decide(http::Method::GET, "/v1/files/f");
    assert_eq!(
        (name.as_str(), files.timeouts.response.as_secs(), files.timeouts.deadline.as_secs()),
        ("preset:files", 300, 33)
    );
    let (name, both) = decide(http::Method::GET, "/v1/files/x");
    assert_eq!((name.as_str(), both.timeouts.response.as_secs()), ("own", 1));
    let (name, quiet) = decide(http::Method::GET, "/v1/quiet");
    // `retry: off` repeats nothing; the preset's hint for the app stays.
    let retry = &quiet.layers.retry.as_ref().unwrap().settings;
    assert_eq!((name.as_str(), retry.attempts, retry.hint.is_some()), ("quiet", 1, true));
    assert!(policy.route(0, &http::Method::GET, "/v1/refunds/x").is_err());
}

/// A file's route that denies is never opened by the preset's, and one that is only tried out lets go on.
/// Paths as the official clients call them (some end with a slash, some with `.json`) go by the routes that are meant for them.
#[test]
fn the_clients_own_paths_go_by_their_routes() {
    for (preset, method, path, route) in [
        ("stripe", "POST", "/v1/files", "files"),
        ("stripe", "GET", "/v1/customers/search", "search"),
        ("stripe", "POST", "/v1/billing/meter_events", "meter-events"),
        ("onesignal", "POST", "/notifications", "notifications"),
        ("onesignal", "DELETE", "/notifications/n1", "notifications"),
        ("github", "POST", "/graphql", "graphql"),
        ("google-gemini", "POST", "/v1beta/openai/chat/completions", "openai"),
        ("github", "POST", "/repos/o/r/releases/1/assets", "uploads"),
        ("sentry", "POST", "/api/1/envelope/", "ingest"),
        ("posthog", "POST", "/api/projects/1/query/", "queries"),
        ("posthog", "POST", "/api/environments/1/query/", "queries"),
        ("resend", "POST", "/emails", "send"),
        ("resend", "POST", "/emails/batch", "send-batch"),
        ("hubspot", "POST", "/crm/v3/objects/contacts/search", "search"),
        ("hubspot", "POST", "/files/v3/files", "files"),
        ("jira", "POST", "/rest/api/2/issue/X-1/attachments", "attachments"),
        ("jira", "POST", "/ex/jira/1f2e/rest/api/3/issue/X-1/attachments", "attachments-of-site"),
        ("zendesk", "POST", "/api/v2/tickets.json", "tickets-json"),
        ("zendesk", "POST", "/api/v2/uploads.json", "uploads-json"),
        ("salesforce", "PUT", "/services/data/v59.0/jobs/ingest/750/batches", "bulk"),
        ("gmail", "POST", "/gmail/v1/users/me/messages/send", "send"),
        ("gmail", "POST", "/upload/gmail/v1/users/me/messages/send", "send-upload"),
        ("gmail", "PUT", "/upload/gmail/v1/users/me/drafts/r1", "uploads"),
        ("cloudinary", "POST", "/v1_1/demo/image/upload", "uploads"),
        ("mailgun", "GET", "/", "root"),
        ("azure-openai", "POST", "/openai/v1/chat/completions", "v1"),
        ("auth0", "GET", "/api/v2/users", "management"),
        ("google-cloud-storage", "POST", "/batch/storage/v1", "batch"),
        ("google-cloud-storage", "PUT", "/bucket/key", "writes"),
        ("gmail", "POST", "/batch/gmail/v1", "batch"),
        ("google-calendar", "POST", "/batch/calendar/v3", "batch"),
        ("digitalocean-spaces", "PUT", "/bucket/key", "writes"),
        ("mixpanel", "POST", "/import", "import"),
        ("new-relic", "POST", "/graphql", "graphql"),
        ("aws-s3", "PUT", "/bucket/key", "writes"),
        ("cloudflare-r2", "PUT", "/bucket/key", "writes"),
    ] {
        let with = &with_each(&Preset::named(preset).unwrap())[0];
        let policy = format!(
            "version: 1\nproviders: {{ p: {{ preset: {preset}, with: {{ {with} }}, credential: none }} }}"
        );
        let policy = compiled(&policy).unwrap();
        let method: http::Method = method.parse().unwrap();
        let chosen = policy.route(0, &method, path).unwrap();
        assert_eq!(&*chosen.settings.name, format!("preset:{route}"), "{preset} {method} {path}");
        if let Some(rest) =
            ["files", "upload", "attachments", "bulk"].iter().find(|name| route.contains(**name))
        {
            let deadline = chosen.settings.settings.timeouts.deadline.as_secs();
            assert!(deadline >= 600, "{preset}: {rest} end after {deadline} s");
        }
    }
}

/// A stream has no end of its own: a `total` for everybody is not for it, one for the provider is.
#[test]
fn a_total_of_the_defaults_ends_no_stream() {
    for (preset, with) in [
        ("openai", ""),
        ("anthropic", ""),
        ("google-gemini", ""),
        ("azure-openai", "with: { resource: acme }, "),
    ] {
        let total = |keys: &str| {
            let policy = format!(
                "version: 1\ndefaults: {{ timeouts: {{ total: 1m }} }}\nproviders: {{ p: {{ preset: {preset}, {with}credential: none{keys} }} }}"
            );
            compiled(&policy).unwrap().providers[0].routes.last().unwrap().settings.timeouts.total
        };
        assert_eq!(total(""), None, "{preset}");
        assert_eq!(total(", timeouts: { total: 5m }"), Some(std::time::Duration::from_secs(300)), "{preset}");
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

#[test]
fn a_presets_route_opens_nothing() {
    let policy = |mode: &str| {
        compiled(&format!(
            "version: 1\nproviders:\n  stripe:\n    preset: stripe\n    mode: {mode}\n    credential: none\n    routes: [{{ name: f, match: {{ path: \"/v1/files/**\" }}, deny: no files }}, {{ name: rest, match: {{}}, deny: nothing else }}]\n",
        ))
        .unwrap()
    };
    let enforced = policy("enforce");
    assert!(enforced.route(0, &http::Method::GET, "/v1/files/x").is_err());
    assert!(enforced.route(0, &http::Method::GET, "/v1/charges").is_err());
    assert!(enforced.connect(&crate::message::target::Host::parse("api.stripe.com").unwrap(), 443).is_err());
    let shadow = policy("shadow");
    let chosen = shadow.route(0, &http::Method::GET, "/v1/files/x").unwrap();
    assert_eq!(&*chosen.settings.name, "preset:files");
    assert_eq!(chosen.shadowed.iter().map(|label| &**label).collect::<Vec<_>>(), ["deny:f", "deny:rest"]);
}

/// Paths are refused as ambiguous for the sake of the policy's routes alone.
#[test]
fn a_presets_routes_refuse_no_path() {
    let policy = compiled("version: 1\nproviders: { s: { preset: stripe, credential: none } }").unwrap();
    let route = |path| policy.route(0, &http::Method::POST, path).unwrap().settings;
    // Stripe honours no keys at `/oauth/token`: no path that it could take for that one is given any.
    let keyed = |path| route(path).settings.layers.idempotency.is_some();
    assert!(keyed("/v1/a%2Fb") && keyed("/v1/a//b") && !keyed("/oauth/token"));
    for path in ["/v1/../oauth/token", "/v1/%2e%2e/oauth/token", "/v1/x%2F..%2F..%2Foauth/token"] {
        assert!(!keyed(path), "{path}");
    }
    assert!(!policy.providers[0].canonical_paths);
}

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

#[test]
fn the_keys_of_all_providers_have_a_shape() {
    let shapes = crate::telemetry::KeyShapes::new(keys::shapes());
    for (text, masked) in [
        ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", "sk_live_***"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_***"),
        ("xoxb-1234567890-abcdefghijklmnop", "xoxb-***"),
        ("SG.0123456789abcdefghijkl.0123456789012345678901234567890123456789012", "SG.***"),
        ("/v1/customers/cus_NffrFeUfNV2Hib", "/v1/customers/cus_NffrFeUfNV2Hib"),
        ("/api/v2/tickets/reindex_all_the_things", "/api/v2/tickets/reindex_all_the_things"),
        (
            "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef",
            "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef",
        ),
    ] {
        assert_eq!(shapes.mask(text), masked);
    }
    // Every class of characters can be read, and every secret with a beginning has a shape.
    for (name, preset) in all() {
        for key in preset.header.keys.iter().filter(|key| key.secret && !key.prefix.is_empty()) {
            let count = keys::shapes_of(&preset.header).len();
            assert!(
                count > 0 && pattern::Chars::parse(key.chars.as_deref().unwrap()).is_ok(),
                "{name} {}",
                key.name
            );
        }
    }
}
