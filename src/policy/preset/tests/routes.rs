use super::*;

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
