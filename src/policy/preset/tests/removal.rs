use std::collections::BTreeSet;

use super::compiled;

/// What an SDK sends elsewhere than where the credential goes is taken out, unless it is all that there is.
#[test]
fn what_the_app_sends_elsewhere_goes_where_outgate_brings_a_credential() {
    let removed = |keys: &str| {
        let policy = format!("version: 1\nproviders:\n  a:\n    preset: anthropic\n{keys}");
        let provider = compiled(&policy).unwrap().providers.remove(0);
        let headers = &provider.routes.last().unwrap().settings.headers;
        assert_eq!(headers.default.len(), 1, "the preset's other changes stay");
        headers.remove.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
    };
    let both = ["authorization", "x-api-key"];
    assert_eq!(removed("    credential: { secret: env:K }\n"), both);
    assert_eq!(removed("    credential: { oauth_token: env:K }\n"), both);
    assert_eq!(removed("    credential: { bearer: env:K }\n"), both);
    // A policy's own list adds to the preset's.
    let own = "    credential: { secret: env:K }\n    headers: { remove: [x-own, X-Api-Key] }\n";
    assert_eq!(removed(own), ["x-own", "x-api-key", "authorization"]);
    let placeholder =
        "    credential: { placeholder: { token: sk-ant-the-apps-own, value: env:K, in: [header] } }\n";
    for keys in ["", "    credential: none\n", placeholder] {
        assert!(removed(keys).is_empty(), "{keys}");
    }
}

/// Parameters go as fields do, on the provider and on its routes.
#[test]
fn a_key_in_the_query_goes_where_outgate_brings_a_credential() {
    let removed = |keys: &str| {
        let policy = format!("version: 1\nproviders:\n  d:\n    preset: datadog\n{keys}");
        let provider = compiled(&policy).unwrap().providers.remove(0);
        let names = |route: &crate::policy::compiled::Route| route.settings.query_remove.join(" ");
        let routes = &provider.routes;
        (names(routes.first().unwrap()), names(routes.last().unwrap()))
    };
    let pair = |route: &str, provider: &str| (route.to_owned(), provider.to_owned());
    let route = |keys: &str| format!("    routes: [{{ match: {{ path: /x }}, {keys} }}]\n");
    let with = "    credential: { api_key: env:K }\n";
    let both = "api_key application_key";
    assert_eq!(removed(with), pair(both, both));
    assert_eq!(removed("    credential: none\n"), pair("", ""));
    let own = "    query: { remove: [own, API_KEY] }\n";
    assert_eq!(
        removed(&format!("{with}{own}")),
        pair("own API_KEY application_key", "own API_KEY application_key")
    );
    assert_eq!(removed(&format!("{with}{}", route("credential: none"))), pair("", both));
    assert_eq!(
        removed(&format!("    credential: none\n{}", route("credential: { api_key: env:K }"))),
        pair(both, "")
    );
    assert_eq!(
        removed(&format!("{with}{}", route("query: { remove: [more] }"))),
        pair(&format!("more {both}"), both)
    );
}

/// A route is judged by the credential that it has, its own or its provider's.
#[test]
fn what_the_app_sends_elsewhere_goes_by_the_routes_credential() {
    let removed = |provider: &str, route: &str| {
        let policy = format!(
            "version: 1\nproviders:\n  a:\n    preset: anthropic\n{provider}    routes: [{{ name: r, match: {{ path: /v1/messages }}, {route} }}]\n"
        );
        let provider = compiled(&policy).unwrap().providers.remove(0);
        let of = |name: &str| {
            let route = provider.routes.iter().find(|route| &*route.name == name).unwrap();
            let fields = route.settings.headers.remove.iter();
            fields
                .map(|name| name.as_str().to_owned())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
        };
        (of("r").join(" "), of("default").join(" "))
    };
    let both = "authorization x-api-key".to_owned();
    let (with, without) = ("    credential: { secret: env:K }\n", "    credential: none\n");
    let own = "    headers: { remove: [x-own] }\n";
    let both_and_own = format!("{both} x-own");
    for (provider, route, expected) in [
        (without.to_owned(), "credential: { secret: env:K }", (both.clone(), String::new())),
        (with.to_owned(), "credential: none", (String::new(), both.clone())),
        (with.to_owned(), "retry: off", (both.clone(), both.clone())),
        (with.to_owned(), "headers: { remove: [x-own] }", (both_and_own.clone(), both.clone())),
        (without.to_owned(), "headers: { remove: [x-own] }", ("x-own".to_owned(), String::new())),
        (with.to_owned() + own, "retry: off", (both_and_own.clone(), both_and_own.clone())),
        (with.to_owned() + own, "credential: none", ("x-own".to_owned(), both_and_own.clone())),
        (
            without.to_owned() + own,
            "credential: { secret: env:K }",
            (both_and_own.clone(), "x-own".to_owned()),
        ),
    ] {
        assert_eq!(removed(&provider, route), expected, "{provider}{route}");
    }
}

/// What is taken out of all requests is taken out of these too, whether a credential is brought or not.
#[test]
fn what_defaults_take_out_stays_out_on_every_route() {
    let removed = |provider: &str, route: &str| {
        let policy = format!(
            "version: 1\ndefaults: {{ headers: {{ remove: [cookie] }}, query: {{ remove: [sid] }} }}\nproviders:\n  d:\n    preset: datadog\n{provider}    routes: [{{ name: r, match: {{ path: /x }}, {route} }}]\n"
        );
        let provider = compiled(&policy).unwrap().providers.remove(0);
        let of = |name: &str| {
            let settings = &provider.routes.iter().find(|route| &*route.name == name).unwrap().settings;
            let fields = settings.headers.remove.iter().map(|name| name.as_str().to_owned());
            let names: BTreeSet<String> =
                fields.chain(settings.query_remove.iter().map(|name| name.to_string())).collect();
            names.into_iter().collect::<Vec<_>>().join(" ")
        };
        (of("r"), of("default"))
    };
    let (with, without) = ("    credential: { api_key: env:K }\n", "    credential: none\n");
    let all = "api_key application_key authorization cookie dd-api-key dd-application-key sid";
    let bare = "cookie sid";
    for (provider, route, on_route, on_provider) in [
        (with, "retry: off", all, all),
        (with, "credential: none", bare, all),
        (without, "retry: off", bare, bare),
        (without, "credential: { api_key: env:K }", all, bare),
        (with, "headers: { remove: [x-own] }, credential: none", "cookie sid x-own", all),
    ] {
        let found = removed(provider, route);
        assert_eq!(found, (on_route.to_owned(), on_provider.to_owned()), "{provider}{route}");
    }
    let own = format!("{without}    headers: {{ remove: [x-own] }}\n");
    assert_eq!(removed(&own, "retry: off").0, "cookie sid x-own");
}

/// `null` takes a preset's list back as it does with every other key; an empty list adds nothing to it.
#[test]
fn null_takes_back_what_a_preset_takes_out() {
    let removed = |provider: &str, route: &str| {
        let policy = format!(
            "version: 1\nproviders:\n  d:\n    preset: datadog\n    credential: {{ api_key: env:K }}\n{provider}    routes: [{{ name: r, match: {{ path: /x }}, {route} }}]\n"
        );
        let provider = compiled(&policy).unwrap().providers.remove(0);
        let of = |name: &str| {
            let settings = &provider.routes.iter().find(|route| &*route.name == name).unwrap().settings;
            (settings.headers.remove.len(), settings.query_remove.len())
        };
        (of("r"), of("default"))
    };
    let (_, (fields, parameters)) = removed("", "retry: off");
    assert!(fields > 0 && parameters > 0);
    let null = "    headers: { remove: null }\n    query: { remove: null }\n";
    assert_eq!(removed(null, "retry: off"), ((0, 0), (0, 0)));
    assert_eq!(removed("", "headers: { remove: null }"), ((0, parameters), (fields, parameters)));
    let empty = "    headers: { remove: [] }\n    query: { remove: [] }\n";
    assert_eq!(removed(empty, "retry: off").1, (fields, parameters));
}
