//! `outgate explain METHOD URL`: which provider and route, from which line, what is injected (by reference), how long things
//! may take, or why the request would be denied. Asks the very functions that the proxy asks.

use std::net::SocketAddr;
use std::process::ExitCode;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value as Json, json};

use super::explain_layers::{BUILT_IN, Origin, layers};
use super::explain_request::values;
use super::{DENIED, PolicyArgument, Style, fail, load, print};
use crate::credential::kinds::MemberSettings;
use crate::credential::{Location, Locations};
use crate::message::target::{Authority, Scheme, Target};
use crate::policy::compiled::{CompiledPolicy, ListenAddress, Provider, Route};
use crate::policy::decide::{ConnectDecision, Refusal};
use crate::policy::diagnostic::render_place;
use crate::policy::tree::{Node, Place, PolicyPath};
use crate::upstream::guard::{OwnListeners, not_own};

/// Arguments of `explain`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArgument,
    /// Method, in capitals; `CONNECT` takes `host:port`.
    method: String,
    /// URL, `host:port` for CONNECT, or a local path such as `/stripe/v1/charges`.
    url: String,
    /// A header the app would send, `Name: value`; says what would be stripped.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Explains one request.
pub fn run(arguments: &Arguments) -> ExitCode {
    let policy = match load(&arguments.policy) {
        Ok(policy) => policy,
        Err(code) => return code,
    };
    let explanation = match explain(&policy, arguments) {
        Ok(explanation) => explanation,
        Err(message) => return fail(message),
    };
    let denied = explanation.get("decision").and_then(Json::as_str) == Some("denied");
    let text = if arguments.json { format!("{explanation:#}\n") } else { for_people(&explanation) };
    let code = print(&text);
    if denied { ExitCode::from(DENIED) } else { code }
}

fn explain(policy: &CompiledPolicy, arguments: &Arguments) -> Result<Json, String> {
    let method = Method::from_bytes(arguments.method.as_bytes()).map_err(|_| "not a method".to_owned())?;
    if method == Method::CONNECT {
        return connect(policy, &arguments.url);
    }
    if let Some(wrong) = arguments.headers.iter().find(|header| !header.contains(':')) {
        return Err(format!("--header wants `Name: value`, not `{wrong}`"));
    }
    let url = parse_url(&arguments.url)?;
    let (provider, target, path) = match find(policy, &url) {
        Ok(found) => found,
        Err(Miss::Tunnel(target)) => return connect(policy, &target),
        Err(Miss::Refused(refusal)) => return Ok(denied(policy, &arguments.url, &refusal, None)),
    };
    let settings = &policy.providers[provider];
    if let Some(refused) = refused_address(policy, settings, &target) {
        return Ok(json!({
            "decision": "denied", "target": arguments.url, "status": 403, "reason": refused,
            "at": place(policy, settings.place), "provider": &*settings.name,
        }));
    }
    match policy.route(provider, &method, &path) {
        Ok(chosen) => Ok(allowed(policy, settings, chosen.settings, &target, &path, &arguments.headers)),
        Err(refusal) => Ok(denied(policy, &arguments.url, &refusal, Some(settings))),
    }
}

enum Url {
    Absolute { scheme: Scheme, authority: Authority, path: String },
    Local(String),
}

/// Why no provider judges a request one by one.
enum Miss {
    /// It goes through a blind tunnel to this target.
    Tunnel(String),
    /// It is refused.
    Refused(Refusal),
}

/// The provider of a URL, by any door: as a proxy is asked for it, inside an intercepted connection, or at the local endpoint.
fn find(policy: &CompiledPolicy, url: &Url) -> Result<(usize, Target, String), Miss> {
    let at_local = |local: Option<crate::policy::decide::LocalDecision<'_>>| {
        let local = local.ok_or(Miss::Refused(Refusal::NoProvider))?;
        let path = if local.path.is_empty() { "/" } else { local.path };
        let target = policy.local_target(&local).map_err(Miss::Refused)?.clone();
        Ok((local.provider, target, path.to_owned()))
    };
    let (scheme, authority, path) = match url {
        Url::Local(path) => return at_local(policy.local_by_path(path)),
        Url::Absolute { scheme, authority, path } => (*scheme, authority, path),
    };
    let host = &authority.host;
    if names_listener(policy, authority) {
        return at_local(policy.local_by_path(path));
    }
    let refusal = match policy.forward(scheme, host, authority.port) {
        Ok((provider, target)) => return Ok((provider, target, path.clone())),
        Err(refusal) => refusal,
    };
    if scheme == Scheme::Https {
        let port = authority.port.unwrap_or(443);
        match policy.connect(host, port) {
            Ok(ConnectDecision::Intercept(provider)) => {
                return Ok((provider, Target { scheme, host: host.clone(), port }, path.clone()));
            }
            Ok(ConnectDecision::Tunnel(_) | ConnectDecision::Unmatched) => {
                return Err(Miss::Tunnel(format!("{host}:{port}")));
            }
            Err(_) => {}
        }
    }
    at_local(policy.local_by_host(host, authority.port, path)).map_err(|miss| match miss {
        Miss::Refused(Refusal::NoHostNamed { .. }) => miss,
        Miss::Refused(_) | Miss::Tunnel(_) => Miss::Refused(refusal),
    })
}

/// Whether the app means outgate itself, as it is asked at a listener: a loopback name with a listener's port. Without a port
/// people mean it too, unless a provider has that very host.
fn names_listener(policy: &CompiledPolicy, authority: &Authority) -> bool {
    let host = &authority.host;
    if host.as_str() != "localhost" && !host.ip().is_some_and(|ip| ip.to_canonical().is_loopback()) {
        return false;
    }
    match authority.port {
        None => {
            [Scheme::Http, Scheme::Https].iter().all(|scheme| policy.forward(*scheme, host, None).is_err())
        }
        Some(port) => policy.fixed.listeners.iter().any(|listener| match &listener.address {
            ListenAddress::Tcp(address) => address.port() == port,
            ListenAddress::Unix(_) | ListenAddress::Systemd(_) => false,
        }),
    }
}

/// Why a host that is an address is not dialled; a name's addresses are known when it is asked for.
fn refused_address(policy: &CompiledPolicy, provider: &Provider, target: &Target) -> Option<String> {
    let settings = &provider.upstream.settings;
    let own = OwnListeners::new(own_addresses(policy));
    let refused = match (settings.connect_to, target.host.ip()) {
        (Some(address), _) => not_own(address.ip(), address.port(), &own),
        (None, Some(ip)) if settings.upstream_proxy.is_none() => {
            settings.addresses.permit(ip, target.port, &own)
        }
        (None, _) => Ok(()),
    };
    refused.err().map(|refusal| refusal.to_string())
}

fn own_addresses(policy: &CompiledPolicy) -> Vec<SocketAddr> {
    let admin = &policy.fixed.admin;
    let listeners = policy.fixed.listeners.iter().map(|listener| &listener.address);
    let addresses = listeners.chain([&admin.address]).filter_map(|address| match address {
        ListenAddress::Tcp(address) => Some(*address),
        ListenAddress::Unix(_) | ListenAddress::Systemd(_) => None,
    });
    addresses.chain(admin.health_address).collect()
}

fn parse_url(url: &str) -> Result<Url, String> {
    if url.starts_with('/') {
        return Ok(Url::Local(url.split('?').next().unwrap_or(url).to_owned()));
    }
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(_) | None => {
            return Err("expected http://, https://, or a path of the local endpoint".to_owned());
        }
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = Authority::parse(&rest[..end]).map_err(|fault| fault.to_string())?;
    let path = rest[end..].split(['?', '#']).next().unwrap_or_default();
    let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
    Ok(Url::Absolute { scheme, authority, path })
}

fn connect(policy: &CompiledPolicy, target: &str) -> Result<Json, String> {
    let authority = Authority::parse(target).map_err(|fault| fault.to_string())?;
    let port = authority.port.ok_or("CONNECT wants `host:port`")?;
    let provider = |index: usize| &policy.providers[index];
    Ok(match policy.connect(&authority.host, port) {
        Err(refusal) => denied(policy, target, &refusal, None),
        Ok(ConnectDecision::Unmatched) => json!({
            "decision": "tunnel", "target": target, "because": "unmatched: tunnel", "opaque": false,
        }),
        Ok(ConnectDecision::Tunnel(index)) => json!({
            "decision": "tunnel", "target": target, "provider": &*provider(index).name,
            "at": place(policy, provider(index).place), "because": provider(index).intercept.because,
            "opaque": provider(index).opaque,
        }),
        Ok(ConnectDecision::Intercept(index)) => json!({
            "decision": "intercept", "target": target, "provider": &*provider(index).name,
            "at": place(policy, provider(index).place), "because": provider(index).intercept.because,
        }),
    })
}

fn denied(policy: &CompiledPolicy, asked: &str, refusal: &Refusal, provider: Option<&Provider>) -> Json {
    let at = match (refusal, provider) {
        (Refusal::Denied { route, .. }, Some(provider)) => {
            provider.routes.iter().find(|known| known.name == *route).map(|route| place(policy, route.place))
        }
        (
            Refusal::NoProvider
            | Refusal::Downgrade
            | Refusal::Trace
            | Refusal::Path(_)
            | Refusal::Denied { .. }
            | Refusal::NoHostNamed { .. },
            _,
        ) => None,
    };
    let status = if matches!(refusal, Refusal::Path(_)) { 400 } else { 403 };
    json!({
        "decision": "denied", "target": asked, "status": status, "reason": refusal.title(), "at": at,
        "provider": provider.map(|provider| &*provider.name),
    })
}

fn allowed(
    policy: &CompiledPolicy,
    provider: &Provider,
    route: &Route,
    target: &Target,
    path: &str,
    headers: &[String],
) -> Json {
    let settings = &route.settings;
    let locations = Locations::new(settings.credential.iter().flat_map(MemberSettings::locations));
    // Shown by the connection, whatever the route says.
    let certificate = upstream_identity(provider).filter(|_| settings.credential.is_empty());
    let shown = certificate.as_ref().map(|_| "the TLS handshake".to_owned());
    let value =
        |key: &[&str], text: String| json!({ "value": text, "from": origin(policy, &route.effective, key) });
    let whole: Origin<'_> = &|path| at_path(policy, &policy.source.tree, path);
    let seconds = |duration: std::time::Duration| humantime::format_duration(duration).to_string();
    let timeouts = &settings.timeouts;
    let upstream = &provider.upstream.settings;
    let mut explained = json!({
        "decision": "allowed",
        "target": format!("{target}{path}"),
        "provider": &*provider.name,
        "provider_at": place(policy, provider.place),
        "preset": provider.preset,
        "route": &*route.name,
        "preset_route": route.within.as_ref().map(|within| &*within.name).filter(|name| *name != &*route.name),
        "at": place(policy, route.place),
        "credential": {
            "references": settings.credential.iter().map(references).chain(certificate.clone()).collect::<Vec<_>>(),
            "places": places(&settings.credential).into_iter().chain(shown).collect::<Vec<_>>(),
            "from": origin(policy, &route.effective, &["credential"]),
        },
        "stripped": stripped(&locations, headers),
        "intercept": { "value": provider.intercept.intercept, "from": provider.intercept.because },
        "scrub": value(&["scrub"], format!("{:?}", settings.scrub).to_lowercase()),
        "max_body": value(&["max_body"], settings.max_body.map_or_else(|| "none".to_owned(), |size| format!("{size} bytes"))),
        "timeouts": {
            "connect": { "value": seconds(upstream.connect_timeout), "from": origin(policy, &route.effective, &["timeouts", "connect"]) },
            "tls": { "value": seconds(upstream.tls_timeout), "from": origin(policy, &route.effective, &["timeouts", "tls"]) },
            "response": value(&["timeouts", "response"], seconds(timeouts.response)),
            "idle": value(&["timeouts", "idle"], seconds(timeouts.idle)),
            "upgrade_idle": value(&["timeouts", "upgrade_idle"], seconds(timeouts.upgrade_idle)),
            "deadline": value(&["timeouts", "deadline"], seconds(timeouts.deadline)),
            "total": value(&["timeouts", "total"], timeouts.total.map_or_else(|| "none".to_owned(), seconds)),
        },
        "layers": layers(
            route,
            &|path| at_path(policy, &route.effective, path),
            &|place| source(policy, place),
            policy.fleet.as_ref().map(|fleet| (&fleet.settings, whole)),
        ),
    });
    if let Json::Object(explained) = &mut explained {
        explained.extend(values(provider, route, &|place| source(policy, place)));
    }
    explained
}

fn upstream_identity(provider: &Provider) -> Option<String> {
    let all = provider.upstream.identities.iter().map(|(certificate, key)| format!("{certificate} + {key}"));
    Some(all.collect::<Vec<_>>().join(", ")).filter(|all| !all.is_empty())
}

/// Its secrets; of a token also what it is got with, and where what rotates is kept.
fn references(member: &MemberSettings) -> String {
    let distinct = |references: Vec<String>| {
        let mut all: Vec<String> = Vec::new();
        references.into_iter().for_each(|text| all.extend((!all.contains(&text)).then_some(text)));
        all.join(" + ")
    };
    let own = member.per_request.iter().flat_map(|work| work.rewriter().secrets());
    let own = own.map(|used| used.reference.to_string());
    let shown =
        member.parts.iter().flat_map(|part| part.secrets()).map(ToString::to_string).chain(own).collect();
    let mut text = distinct(shown);
    for token in &member.tokens {
        let grant = token.settings.grant();
        let inputs = grant.inputs().into_iter().flat_map(|input| input.alternatives);
        text.push_str(&format!(", got with {}", distinct(inputs.map(|one| one.to_string()).collect())));
        text.extend(grant.keep().map(|keep| format!(", kept in {keep}")));
    }
    text
}

/// Where the credential goes, each place once.
fn places(members: &[MemberSettings]) -> Vec<String> {
    let written = Locations::new(members.iter().flat_map(MemberSettings::written));
    let mut all: Vec<String> = written.iter().map(describe).collect();
    for place in members
        .iter()
        .filter_map(|member| member.per_request.as_ref())
        .flat_map(|work| work.rewriter().places())
    {
        if !all.contains(&place) {
            all.push(place);
        }
    }
    all
}

fn describe(location: &Location) -> String {
    match location {
        Location::Header(name) => format!("header {name}"),
        Location::Query(name) => format!("query parameter {name}"),
    }
}

/// Which of the given headers would be taken out.
fn stripped(locations: &Locations, headers: &[String]) -> Vec<String> {
    let mut sent = HeaderMap::new();
    for line in headers {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let name = HeaderName::from_bytes(name.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value.trim())) {
            sent.append(name, value);
        }
    }
    let names: Vec<HeaderName> = sent.keys().cloned().collect();
    locations.strip_headers(&mut sent);
    names.iter().filter(|name| !sent.contains_key(*name)).map(ToString::to_string).collect()
}

/// Where the value of a key comes from: a line of the policy, or built in.
fn origin(policy: &CompiledPolicy, effective: &Node, keys: &[&str]) -> String {
    at_path(policy, effective, &keys.iter().fold(PolicyPath::root(), |path, key| path.key(*key)))
}

fn at_path(policy: &CompiledPolicy, effective: &Node, path: &PolicyPath) -> String {
    effective.at(path).map_or_else(|| BUILT_IN.to_owned(), |node| source(policy, node.place))
}

/// A line of the policy, of its `defaults`, or of a preset, which has a name of its own.
fn source(policy: &CompiledPolicy, at: Place) -> String {
    let in_defaults = policy.source.tree.get("defaults").is_some_and(|defaults| defaults.holds(at));
    format!("{}{}", if in_defaults { "defaults " } else { "" }, place(policy, at))
}

fn place(policy: &CompiledPolicy, place: Place) -> String {
    render_place(place, &policy.source.sources)
}

fn for_people(explanation: &Json) -> String {
    let style = Style::of_stdout();
    let text = |key: &str| explanation.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    let decision = text("decision");
    let shown = if decision == "denied" { style.bad(&decision) } else { style.good(&decision) };
    let mut out = format!("{} {}\n", style.bold(&shown), text("target"));
    let mut lines: Vec<(String, String, String)> = Vec::new();
    let mut line = |name: &str, value: String, from: String| {
        if !value.is_empty() {
            lines.push((name.to_owned(), value, from));
        }
    };
    line("reason", text("reason"), text("at"));
    if decision == "denied" {
        let status = explanation.get("status").map(ToString::to_string).unwrap_or_default();
        line("status", status, String::new());
    }
    line("provider", text("provider"), text("provider_at"));
    line("because", text("because"), String::new());
    if decision == "allowed" {
        line("preset", text("preset"), String::new());
        line("route", text("route"), text("at"));
        line("  and the preset's", text("preset_route"), String::new());
        details(explanation, &mut line);
    }
    // Few names are very long, and those stand out.
    let names = lines.iter().map(|(name, ..)| name.len()).filter(|length| *length <= WIDEST);
    let width = names.max().unwrap_or_default();
    for (name, value, from) in lines {
        let from = if from.is_empty() { String::new() } else { format!("  {}", style.faint(&from)) };
        out.push_str(&format!("  {name:<width$} {value}{from}\n"));
    }
    out
}

/// The widest column of names, in characters.
const WIDEST: usize = 32;

fn details(explanation: &Json, line: &mut impl FnMut(&str, String, String)) {
    let list = |value: Option<&Json>| {
        let texts: Vec<&str> =
            value.and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
        texts.join(", then ")
    };
    let credential = explanation.get("credential");
    let references = list(credential.and_then(|credential| credential.get("references")));
    let from =
        credential.and_then(|credential| credential.get("from")).and_then(Json::as_str).unwrap_or_default();
    line("credential", if references.is_empty() { "none".to_owned() } else { references }, from.to_owned());
    line("  injected into", list(credential.and_then(|credential| credential.get("places"))), String::new());
    line("  stripped from the app", list(explanation.get("stripped")), String::new());
    for key in BESIDE_LAYERS {
        value_lines(key, explanation.get(key), line);
    }
    for (layer, values) in explanation.get("layers").and_then(Json::as_object).into_iter().flatten() {
        for (key, value) in values.as_object().into_iter().flatten() {
            let name = if key.is_empty() { layer.clone() } else { format!("{layer}.{key}") };
            value_line(&name, Some(value), line);
        }
    }
}

/// What is said of a request that is no layer, in the order of saying it.
const BESIDE_LAYERS: [&str; 15] = [
    "hosts",
    "doors",
    "upstream",
    "local",
    "paths",
    "intercept",
    "tenant",
    "headers",
    "query",
    "scrub",
    "redact",
    "max_body",
    "timeouts",
    "cost",
    "mode",
];

/// A value, or all that lie below a key.
fn value_lines(name: &str, value: Option<&Json>, line: &mut impl FnMut(&str, String, String)) {
    let Some(below) = value.and_then(Json::as_object).filter(|value| !value.contains_key("value")) else {
        return value_line(name, value, line);
    };
    for (key, value) in below {
        value_lines(&format!("{name}.{key}"), Some(value), line);
    }
}

fn value_line(name: &str, value: Option<&Json>, line: &mut impl FnMut(&str, String, String)) {
    let Some(value) = value else { return };
    let shown =
        value.get("value").map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let from = value.get("from").and_then(Json::as_str).unwrap_or_default();
    line(name, shown.unwrap_or_default(), from.to_owned());
}
