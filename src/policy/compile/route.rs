//! Routes: what each has of its own, and what it has from its provider.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::Compiler;
use super::layers::{Written, place_of_hint};
use super::provider::Texts;
use crate::credential::CredentialConfig;
use crate::credential::kinds::header::header_name;
use crate::credential::kinds::query::is_parameter;
use crate::message::quantity::TimeSpan;
use crate::policy::compiled::{HeaderEdits, Route, RouteSettings, Timeouts, Within};
use crate::policy::decode::decode;
use crate::policy::merge::merge;
use crate::policy::pattern::PathPattern;
use crate::policy::schema::{
    HeadersConfig, MatchConfig, ProviderConfig, QueryEditsConfig, RouteConfig, TimeoutsConfig,
};
use crate::policy::tree::{Entry, Node, Place, PolicyPath, Value};

/// Keys of a provider that a route cannot have, so they do not stand in its merged text.
const PROVIDER_ONLY: [&str; 11] = [
    "hosts",
    "upstream",
    "doors",
    "intercept",
    "opaque",
    "local",
    "routes",
    "preset",
    "with",
    "redact",
    "paths",
];

/// The names of a preset's routes begin so: they are apart from the policy's, whatever those are called.
const PRESET_ROUTE: &str = "preset:";

/// What lies below a route: the provider, or the provider with a route of its preset.
struct Ground<'a> {
    /// The merged text.
    base: Node,
    /// What that was laid over: `defaults` and the preset.
    lower: &'a Node,
    /// The preset's route, and what of its text counts.
    preset: Option<(Within, Node)>,
    /// The preset's own text, for its place.
    text: Option<&'a Node>,
    /// Why the preset refuses what comes here, where no route of the policy names its path.
    deny: Option<String>,
}

impl Compiler<'_> {
    /// The routes of a provider in order, and last the provider itself. The routes of a preset stand below each of them: first
    /// the policy's route decides, then the first of the preset's that matches fills in what is open.
    pub(super) fn routes(
        &mut self,
        config: &ProviderConfig,
        text: &Texts<'_>,
        path: &PolicyPath,
        place: Place,
    ) -> Vec<Arc<Route>> {
        let plain = Ground {
            base: without(&text.merged, &PROVIDER_ONLY),
            lower: &text.lower,
            preset: None,
            text: None,
            deny: None,
        };
        // First, so that what is wrong with the provider is told by its own path.
        let own = self.provider_route(config, &plain, path, place);
        let grounds: Vec<Ground<'_>> = self.preset_grounds(text, path).into_iter().chain([plain]).collect();
        let mut routes = Vec::new();
        let written = text.merged.get("routes").map(Node::items).unwrap_or_default();
        for (index, (route, node)) in config.routes.iter().flatten().zip(written).enumerate() {
            let path = path.key("routes").index(index);
            // What is refused is refused with and without the preset's route.
            let below = if route.deny.is_some() { &grounds[grounds.len() - 1..] } else { &grounds[..] };
            for ground in below {
                routes.extend(self.route((route, node), ground, config, &path).map(Arc::new));
            }
        }
        self.check_route_names(&routes);
        for ground in grounds.iter().filter(|ground| ground.preset.is_some()) {
            routes.extend(self.provider_route(config, ground, path, place).map(Arc::new));
        }
        routes.extend(own.map(Arc::new));
        routes
    }

    /// The provider itself as a route, or what its preset's route makes of it.
    fn provider_route(
        &mut self,
        config: &ProviderConfig,
        ground: &Ground<'_>,
        path: &PolicyPath,
        place: Place,
    ) -> Option<Route> {
        let merged = match &ground.preset {
            Some(_) => &self.decode_merged(&ground.base, path)?,
            None => config,
        };
        let names: Vec<(&Node, &str)> =
            ground.preset.iter().map(|(within, node)| (node, &*within.name)).collect();
        let below = [ground.lower];
        let written = Written { effective: &ground.base, own: &names, below: &below };
        let settings = self.settings(merged, written, path)?;
        let within = ground.preset.as_ref().map(|(within, _)| within.clone());
        let shadow = merged.mode.unwrap_or_default().is_shadow();
        let shadowed = within.as_ref().filter(|_| shadow && ground.deny.is_some());
        Some(Route {
            shadow: shadowed.map(|within| format!("deny:{}", within.name).into()),
            name: within.as_ref().map_or_else(|| "default".into(), |within| within.name.clone()),
            path: path.clone(),
            place: ground.text.map_or(place, |text| text.place),
            methods: None,
            pattern: None,
            within,
            deny: ground.deny.clone(),
            settings,
            effective: ground.base.clone(),
            hint_place: place_of_hint(written),
        })
    }

    /// The routes of the preset, each between the preset and the provider's own keys.
    fn preset_grounds<'a>(&mut self, text: &'a Texts<'a>, path: &PolicyPath) -> Vec<Ground<'a>> {
        let routes = text.preset.map(|preset| preset.routes.as_slice()).unwrap_or_default();
        let mut grounds = Vec::new();
        for node in routes {
            let Some(route) = self.decode_route(node, path) else { continue };
            let matching = route.matching.unwrap_or_default();
            let Some(pattern) = self.pattern(&matching, path) else { continue };
            let methods = self.methods(&matching, path);
            let name =
                route.name.unwrap_or_else(|| derived_name(methods.as_deref(), matching.path.as_deref()));
            let name = format!("{PRESET_ROUTE}{name}").into();
            let fills = without(node, &["match", "name", "deny"]);
            let base = merge(&merge(&text.lower, &fills), text.own);
            // What the provider writes itself is counted for it as a whole.
            let own: Vec<&str> = text.own.entries().iter().map(|entry| entry.key.as_str()).collect();
            let counted =
                without(&fills, &own.into_iter().filter(|key| *key != "limits").collect::<Vec<_>>());
            grounds.push(Ground {
                base: without(&base, &PROVIDER_ONLY),
                lower: &text.lower,
                preset: Some((Within { name, methods, pattern }, counted)),
                text: Some(node),
                deny: route.deny,
            });
        }
        grounds
    }

    /// A route of a preset; a test reads them all, so there is no mistake in it.
    fn decode_route(&mut self, node: &Node, path: &PolicyPath) -> Option<RouteConfig> {
        decode(node, path, &mut self.mistakes)
    }

    fn check_route_names(&mut self, routes: &[Arc<Route>]) {
        let own: Vec<&Arc<Route>> = routes.iter().filter(|route| route.within.is_none()).collect();
        for (index, route) in own.iter().enumerate() {
            if own[..index]
                .iter()
                .any(|earlier| earlier.pattern == route.pattern && earlier.methods == route.methods)
            {
                self.mistake(
                    &route.path,
                    "an earlier route has the same methods and path: this one is never reached",
                );
            } else if *route.name == *"default"
                || route.name.starts_with(PRESET_ROUTE)
                || own[..index].iter().any(|earlier| earlier.name == route.name)
            {
                // Limits, breakers and metrics of a route go by its name.
                self.mistake_with(
                    &route.path.key("name"),
                    "another route of this provider has the same name",
                    "a name of its own; `default` is what no route matches, and `preset:` begins the names of a preset's",
                );
            }
        }
    }

    fn route(
        &mut self,
        (config, node): (&RouteConfig, &Node),
        ground: &Ground<'_>,
        provider: &ProviderConfig,
        path: &PolicyPath,
    ) -> Option<Route> {
        let Some(matching) = &config.matching else {
            self.mistake_with(
                path,
                "missing key `match`",
                "`match: { methods: [POST], path: \"/v1/**\" }`, or `match: {}` for all",
            );
            return None;
        };
        let methods = self.methods(matching, &path.key("match").key("methods"));
        let pattern = self.pattern(matching, &path.key("match").key("path"))?;
        let effective = merge(&ground.base, &without(node, &["match", "deny", "name"]));
        let merged = self.decode_merged(&effective, path)?;
        self.check_identity(provider.credential.as_ref(), merged.credential.as_ref(), path);
        if config
            .timeouts
            .as_ref()
            .is_some_and(|timeouts| timeouts.connect.is_some() || timeouts.tls.is_some())
        {
            self.mistake(
                &path.key("timeouts"),
                "`connect` and `tls` belong to the provider: its routes share connections",
            );
        }
        let name = self.route_name(config, methods.as_deref(), path)?;
        let names: Vec<(&Node, &str)> = std::iter::once((node, name.as_str()))
            .chain(ground.preset.iter().map(|(within, node)| (node, &*within.name)))
            .collect();
        let below = [&ground.base, ground.lower];
        let written = Written { effective: &effective, own: &names, below: &below };
        let settings = self.settings(&merged, written, path)?;
        let hint_place = place_of_hint(written);
        let shadow = merged.mode.unwrap_or_default().is_shadow();
        // What the preset refuses is opened by naming its path, and not by a route for everything.
        let deny = config.deny.clone().or_else(|| ground.deny.clone().filter(|_| pattern.is_none()));
        Some(Route {
            shadow: (shadow && deny.is_some()).then(|| format!("deny:{name}").into()),
            name: name.into(),
            path: path.clone(),
            place: node.place,
            methods,
            pattern,
            within: ground.preset.as_ref().map(|(within, _)| within.clone()),
            deny,
            settings,
            effective,
            hint_place,
        })
    }

    /// A client certificate is shown by connections, which the routes of a provider share.
    fn check_identity(
        &mut self,
        provider: Option<&CredentialConfig>,
        route: Option<&CredentialConfig>,
        path: &PolicyPath,
    ) {
        let of = |config: Option<&CredentialConfig>| {
            config.filter(|config| config.is_certificate()).map(CredentialConfig::identities)
        };
        match (of(provider), of(route)) {
            (own, Some(other)) if own.as_ref() != Some(&other) => self.mistake_with(
                &path.key("credential"),
                "a client certificate belongs to the provider: its routes share connections",
                "`mtls` as the provider's credential, or another provider with `doors: [local]`",
            ),
            (Some(_), None) => self.warnings.push(format!(
                "{path}.credential: the provider's client certificate is shown on this route too: its routes share connections"
            )),
            _ => {}
        }
    }

    fn route_name(
        &mut self,
        config: &RouteConfig,
        methods: Option<&[Method]>,
        path: &PolicyPath,
    ) -> Option<String> {
        match &config.name {
            Some(name)
                if (1..=64).contains(&name.len())
                    && name.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'"') =>
            {
                Some(name.clone())
            }
            Some(_) => {
                self.mistake(
                    &path.key("name"),
                    "a route's name has 1 to 64 printable characters without space",
                );
                None
            }
            None => {
                let matching = config.matching.as_ref();
                Some(derived_name(methods, matching.and_then(|matching| matching.path.as_deref())))
            }
        }
    }

    fn methods(&mut self, matching: &MatchConfig, path: &PolicyPath) -> Option<Vec<Method>> {
        let names = matching.methods.as_ref()?;
        if names.is_empty() {
            self.mistake(path, "no method: leave the key out for all");
        }
        let mut methods = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let at = path.index(index);
            match Method::from_bytes(name.as_bytes()) {
                Ok(method) if *name == name.to_ascii_uppercase() => methods.push(method),
                Ok(_) => self.mistake_with(
                    &at,
                    "methods are written in capitals",
                    format!("`{}`", name.to_ascii_uppercase()),
                ),
                Err(_) => self.mistake(&at, "not a method"),
            }
        }
        Some(methods)
    }

    /// The pattern, where there is one; nothing at all where it is wrong.
    fn pattern(&mut self, matching: &MatchConfig, path: &PolicyPath) -> Option<Option<PathPattern>> {
        let Some(text) = matching.path.as_ref() else { return Some(None) };
        match PathPattern::parse(text) {
            Ok(pattern) => Some(Some(pattern)),
            Err(error) => {
                self.mistake(path, error.to_string());
                None
            }
        }
    }

    fn settings(
        &mut self,
        config: &ProviderConfig,
        written: Written<'_>,
        path: &PolicyPath,
    ) -> Option<RouteSettings> {
        let credential = self.credential(config, &path.key("credential"))?;
        Some(RouteSettings {
            credential,
            scrub: config.scrub.unwrap_or_default(),
            headers: self.headers(config.headers.as_ref(), &path.key("headers")),
            query_remove: self.query_remove(config.query.as_ref(), &path.key("query")),
            max_body: config.max_body.map(|size| size.bytes()),
            timeouts: self.timeouts(config.timeouts.as_ref(), &path.key("timeouts")),
            layers: self.layers(config, written, path),
        })
    }

    fn timeouts(&mut self, config: Option<&TimeoutsConfig>, path: &PolicyPath) -> Timeouts {
        let config = config.cloned().unwrap_or_default();
        let mut span = |span: Option<TimeSpan>, seconds: u64, key: &str| {
            self.span(span, Duration::from_secs(seconds), &path.key(key))
        };
        Timeouts {
            response: span(config.response, 60, "response"),
            idle: span(config.idle, 60, "idle"),
            upgrade_idle: span(config.upgrade_idle, 3600, "upgrade_idle"),
            deadline: span(config.deadline, 120, "deadline"),
            total: config.total.map(|total| span(Some(total), 0, "total")),
        }
    }

    fn headers(&mut self, config: Option<&HeadersConfig>, path: &PolicyPath) -> HeaderEdits {
        let Some(config) = config else { return HeaderEdits::default() };
        let mut edits = HeaderEdits {
            set: self.header_lines(config.set.as_ref(), &path.key("set")),
            default: self.header_lines(config.default.as_ref(), &path.key("default")),
            remove: Vec::new(),
        };
        for (index, name) in config.remove.iter().flatten().enumerate() {
            match header_name(name) {
                Ok(name) => edits.remove.push(name),
                Err(message) => self.mistake(&path.key("remove").index(index), message),
            }
        }
        edits
    }

    fn query_remove(&mut self, config: Option<&QueryEditsConfig>, path: &PolicyPath) -> Vec<String> {
        let names = config.and_then(|config| config.remove.clone()).unwrap_or_default();
        for (index, _) in names.iter().enumerate().filter(|(_, name)| !is_parameter(name)) {
            self.mistake(&path.key("remove").index(index), "not a parameter name");
        }
        names
    }

    fn header_lines(
        &mut self,
        lines: Option<&BTreeMap<String, String>>,
        path: &PolicyPath,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut parsed = Vec::new();
        for (name, value) in lines.into_iter().flatten() {
            let at = path.key(name.clone());
            // Content types are the one framing-like field that a policy may have to set.
            let name = if name.eq_ignore_ascii_case("content-type") {
                Ok(http::header::CONTENT_TYPE)
            } else {
                header_name(name)
            };
            match (name, HeaderValue::from_str(value)) {
                (Ok(name), Ok(value)) => parsed.push((name, value)),
                (Err(message), _) => self.mistake(&at, message),
                (Ok(_), Err(_)) => self.mistake(&at, "not a header value: printable ASCII only"),
            }
        }
        parsed
    }
}

fn derived_name(methods: Option<&[Method]>, path: Option<&str>) -> String {
    let methods = methods.map(|methods| methods.iter().map(Method::as_str).collect::<Vec<_>>().join(","));
    match (methods, path) {
        (Some(methods), Some(path)) => format!("{methods} {path}"),
        (Some(methods), None) => methods,
        (None, Some(path)) => path.to_owned(),
        (None, None) => "*".to_owned(),
    }
}

/// A mapping without some of its keys.
fn without(node: &Node, keys: &[&str]) -> Node {
    let entries: Vec<Entry> =
        node.entries().iter().filter(|entry| !keys.contains(&entry.key.as_str())).cloned().collect();
    Node { value: Value::Mapping(entries), place: node.place }
}
