//! The resilience layers of a route: what was typed, with every mistake told at its place, and whose traffic each counts.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::{Compiler, nearest};
use crate::policy::compiled::Route;
use crate::policy::decode::salvage;
use crate::policy::diagnostic::{Diagnostic, Diagnostics};
use crate::policy::layers::{LayerSettings, Owned, Owner};
use crate::policy::schema::ProviderConfig;
use crate::policy::switch::Switch;
use crate::policy::tree::{Node, Place, PolicyPath, Step as PathStep};
use crate::resilience::circuit_breaker::Fallback;
use crate::resilience::key::Per;
use crate::resilience::mistake::{Mistake, Mistakes, Step};
use crate::resilience::quota::config::{FieldSet, LeftField, ReserveConfig};
use crate::resilience::quota::{QuotaConfig, QuotaSettings};
use crate::resilience::rate_limit::{LimitSettings, Origin, Scope, Unit};
use crate::resilience::responses;
use crate::resilience::retry::{RetryConfig, RetrySettings};

/// The highest cost of a request.
const MOST_COST: u32 = 1_000_000;

/// What of a route is its own, and what it has from its provider.
#[derive(Clone, Copy)]
pub(super) struct Written<'a> {
    /// The merged text of the route.
    pub effective: &'a Node,
    /// The routes that have a say, the first before the next, each with its own text and name; none for the provider itself.
    pub own: &'a [(&'a Node, &'a str)],
    /// What it was laid over, the nearest first.
    pub below: &'a [&'a Node],
}

/// Where a layer's settings stand: in the merged text, and by which path they are told.
#[derive(Clone, Copy)]
struct At<'a> {
    written: Written<'a>,
    path: &'a PolicyPath,
}

impl<'a> Written<'a> {
    /// Who wrote the key.
    fn owner(&self, key: &str) -> Owner {
        self.first(|node| node.get(key).is_some())
    }

    /// The budget is the provider's, also where a route says something else about its retries.
    fn owner_of_budget(&self) -> Owner {
        self.first(|node| node.get("retry").is_some_and(|retry| retry.get("budget").is_some()))
    }

    fn first(&self, wrote: impl Fn(&Node) -> bool) -> Owner {
        let route = self.own.iter().find(|(node, _)| wrote(node));
        route.map_or(Owner::Provider, |(_, name)| Owner::Route((*name).into()))
    }

    /// Who wrote each entry of a list of which some entries may come from the provider.
    fn owners(&self, key: &str) -> Vec<Owner> {
        let places = |(node, name): &(&Node, &'a str)| {
            let items =
                node.get(key).map(|node| node.items().iter().map(|item| item.place).collect::<Vec<_>>());
            items.unwrap_or_default().into_iter().map(|place| (place, *name)).collect::<Vec<_>>()
        };
        let own: HashMap<Place, &str> = self.own.iter().rev().flat_map(places).collect();
        let items = self.effective.get(key).map(Node::items).unwrap_or_default();
        items
            .iter()
            .map(|item| own.get(&item.place).map_or(Owner::Provider, |name| Owner::Route((*name).into())))
            .collect()
    }
}

impl Compiler<'_> {
    pub(super) fn layers(
        &mut self,
        config: &ProviderConfig,
        written: Written<'_>,
        path: &PolicyPath,
    ) -> LayerSettings {
        let at = At { written, path };
        let retry = self.retry(config, at);
        let quota = self.quota(config, at);
        let concurrency = self.layer(config.concurrency.as_ref(), at, "concurrency", |c, m| c.compile(m));
        let breaker = self.layer(config.breaker.as_ref(), at, "breaker", |c, m| c.compile(m));
        let cache = self.layer(config.cache.as_ref(), at, "cache", |c, m| c.compile(m));
        let idempotency = self.layer(config.idempotency.as_ref(), at, "idempotency", |c, m| c.compile(m));
        let none = Vec::new();
        let rows = config.responses.as_ref().and_then(Switch::on).unwrap_or(&none);
        let responses = self.told(at, "responses", |mistakes| responses::config::compile(rows, mistakes));
        let layers = LayerSettings {
            limits: self.limits(config, at),
            cost: NonZeroU32::new(config.cost.unwrap_or(1)).unwrap_or(NonZeroU32::MIN),
            concurrency: concurrency.map(|settings| Owned { owner: written.owner("concurrency"), settings }),
            quota,
            responses,
            retry: retry.map(|settings| Owned { owner: written.owner_of_budget(), settings }),
            idempotency,
            breaker: breaker.map(|settings| Owned { owner: written.owner("breaker"), settings }),
            cache: cache.map(|settings| Owned { owner: written.owner("cache"), settings }),
            shadow: config.mode.unwrap_or_default().is_shadow(),
        };
        self.check_together(&layers, config, at);
        layers
    }

    /// Compiles one layer's settings, where it has any.
    fn layer<C, S>(
        &mut self,
        config: Option<&Switch<C>>,
        at: At<'_>,
        key: &'static str,
        compile: impl FnOnce(&C, &mut Mistakes) -> S,
    ) -> Option<S> {
        let config = config.and_then(Switch::on)?;
        Some(self.told(at, key, |mistakes| compile(config, mistakes)))
    }

    /// Tells the mistakes of one layer at their places.
    fn told<S>(&mut self, at: At<'_>, key: &'static str, compile: impl FnOnce(&mut Mistakes) -> S) -> S {
        let mut mistakes = Mistakes::default();
        let settings = compile(&mut mistakes);
        for mistake in mistakes.into_vec() {
            let below = |path: &PolicyPath| below(&path.key(key), &mistake);
            // Where it is really written: in `defaults`, at the provider or in the route.
            let place = nearest(at.written.effective, &below(&PolicyPath::root()));
            let follows = self.follows(at.written.effective, key, &mistake);
            if follows || self.mistakes.knows(place, &mistake.message) {
                continue;
            }
            let told = Diagnostic::new(place, self.as_written(&below(at.path), place), mistake.message);
            self.mistakes.push(match mistake.hint {
                Some(hint) => told.hint(hint),
                None => told,
            });
        }
        settings
    }

    /// The path with the index that an entry of a list has where it was written: in the merged text the entries of a preset may stand
    /// before it.
    fn as_written(&self, path: &PolicyPath, place: Option<Place>) -> PolicyPath {
        let steps = path.steps();
        let Some(at) = steps.iter().rposition(|step| matches!(step, PathStep::Index(_))) else {
            return path.clone();
        };
        let list = PolicyPath::from_steps(steps[..at].to_vec());
        let items = self.tree.at(&list).map(Node::items).unwrap_or_default();
        let Some(index) = items.iter().position(|item| place.is_some_and(|place| item.holds(place))) else {
            return path.clone();
        };
        let rest = steps[at + 1..].iter().cloned();
        PolicyPath::from_steps(
            steps[..at].iter().cloned().chain([PathStep::Index(index)]).chain(rest).collect(),
        )
    }

    /// Whether a mistake is about a value that was left out because it, or an entry of it, could not be read: that was told,
    /// and that the value is missing is not true.
    fn follows(&self, effective: &Node, key: &'static str, mistake: &Mistake) -> bool {
        let path = below(&PolicyPath::root().key(key), mistake);
        let Some(node) = effective.at(&path) else { return false };
        let told = |place, path: &PolicyPath| self.mistakes.has_among(self.of_types, place, path);
        told(node.place, &path)
            || node.items().iter().enumerate().any(|(index, item)| told(item.place, &path.index(index)))
    }

    /// A provider of which the policy says nothing has `retry` with its defaults.
    fn retry(&mut self, config: &ProviderConfig, at: At<'_>) -> Option<RetrySettings> {
        match &config.retry {
            None => Some(self.told(at, "retry", |mistakes| RetryConfig::default().compile(mistakes))),
            Some(Switch::Off) => hint_alone(at.written),
            Some(switch) => self.layer(Some(switch), at, "retry", |config, mistakes| {
                let hint = hint_below(at.written).and_then(read_retry).and_then(|below| below.hint);
                RetryConfig { hint: hint.or_else(|| config.hint.clone()), ..config.clone() }.compile(mistakes)
            }),
        }
    }

    /// The same for `quota`: the IETF fields and `Retry-After` are read.
    fn quota(&mut self, config: &ProviderConfig, at: At<'_>) -> Option<QuotaSettings> {
        match &config.quota {
            None => Some(self.told(at, "quota", |mistakes| QuotaConfig::default().compile(mistakes))),
            Some(switch) => {
                self.layer(Some(switch), at, "quota", |config, mistakes| config.compile(mistakes))
            }
        }
    }

    fn limits(&mut self, config: &ProviderConfig, at: At<'_>) -> Vec<Owned<LimitSettings>> {
        let Some(limits) = config.limits.as_ref().and_then(Switch::on) else { return Vec::new() };
        let fleet = self.fleet;
        let tenant = config.tenant.is_some();
        let owners = at.written.owners("limits");
        let origins = self.origins_of_limits(at.written, &owners);
        let settings = self.told(at, "limits", |mistakes| {
            let settings = limits.compile(&origins, mistakes);
            for (index, limit) in settings.iter().enumerate() {
                if limit.scope == Scope::Fleet && !fleet {
                    mistakes.hint(
                        &format!("{index}.scope"),
                        "`scope: fleet` needs the key `fleet` at the top of the policy",
                        "`fleet: { redis: { url: \"env:REDIS_URL\" } }`, or `scope: pod`",
                    );
                }
                if limit.per == Per::Tenant && !tenant {
                    mistakes.hint(
                        &format!("{index}.per"),
                        "`per: tenant` needs to know the tenant",
                        "`tenant: { header: X-Tenant, required: true }` at the provider",
                    );
                }
            }
            settings
        });
        let owners = owners.into_iter().chain(std::iter::repeat(Owner::Provider));
        settings.into_iter().zip(owners).map(|(settings, owner)| Owned { owner, settings }).collect()
    }

    /// Which limits one author wrote side by side: those of one text, provider or route, and not one of `defaults` beside one
    /// of the provider. A stricter limit of one's own over that of a preset is no mistake.
    fn origins_of_limits(&self, written: Written<'_>, owners: &[Owner]) -> Vec<Origin> {
        let items = |node: Option<&Node>| -> Vec<Place> {
            let list = node.and_then(|node| node.get("limits")).map(Node::items).unwrap_or_default();
            list.iter().map(|item| item.place).collect()
        };
        let defaults = items(self.tree.get("defaults"));
        let mut lists = Vec::new();
        let places = items(Some(written.effective));
        let origins = places.into_iter().zip(owners).map(|(place, owner)| {
            let list = (place.source, defaults.contains(&place), owner);
            let known = lists.iter().position(|known| *known == list);
            let list = known.unwrap_or_else(|| {
                lists.push(list);
                lists.len() - 1
            });
            Origin { list, line: place.line }
        });
        origins.collect()
    }

    /// What a provider or its routes say that nothing of the provider can follow. What a preset says is not blamed on who uses it.
    pub(super) fn check_in_vain(&mut self, own: &Node, routes: &[Arc<Route>], path: &PolicyPath) {
        let layers = || routes.iter().map(|route| &route.settings.layers);
        let learns = layers().any(|layers| layers.quota.as_ref().is_some_and(|quota| quota.learn));
        let mut counts = layers().flat_map(|layers| &layers.limits);
        let counts = counts.any(|limit| limit.settings.unit == Unit::Cost);
        self.warn_of_idle_limits(own, routes, path);
        self.warn_of_vague_reserve(routes, path);
        let own_routes = own.get("routes").map(Node::items).unwrap_or_default().iter().enumerate();
        let own_routes = own_routes.map(|(index, route)| (route, path.key("routes").index(index)));
        for (node, path) in std::iter::once((own, path.clone())).chain(own_routes) {
            if !counts && node.get("cost").is_some() {
                self.warnings.push(format!(
                    "{path}.cost: does nothing: no limit of this provider counts cost (`unit: cost`)"
                ));
            }
            let rows = node.get("responses").map(Node::items).unwrap_or_default().iter().enumerate();
            for (index, _) in rows.filter(|(_, row)| !learns && row.get("pauses").is_some()) {
                let path = path.key("responses").index(index).key("pauses");
                let hint = "leave it out, or `quota: { learn: true }`";
                self.mistake_with(&path, "pauses nothing: no route of this provider learns its quota", hint);
            }
        }
    }

    /// Limits that another one keeps from ever being reached, a route's by its provider's too. Those of a preset and of `defaults`
    /// are there to be undercut.
    fn warn_of_idle_limits(&mut self, own: &Node, routes: &[Arc<Route>], path: &PolicyPath) {
        let own_routes = own.get("routes").map(Node::items).unwrap_or_default();
        let lists = std::iter::once(own).chain(own_routes).filter_map(|node| node.get("limits"));
        let entries: Vec<&Node> = lists.flat_map(Node::items).collect();
        // Presets name theirs.
        let unnamed = entries.iter().any(|entry| entry.get("name").is_none());
        let names: Vec<&str> = entries.iter().filter_map(|entry| entry.get("name")?.as_str()).collect();
        let is_own = |name: &str| names.contains(&name) || unnamed && name.starts_with("limit-");
        let mut told = BTreeSet::new();
        for route in routes {
            let limits = &route.settings.layers.limits;
            let enumerated = || limits.iter().enumerate();
            for (place, limit) in enumerated().filter(|(_, limit)| is_own(&limit.settings.name)) {
                let mut others = enumerated().filter(|(other, by)| {
                    let counts = by.owner == limit.owner || by.owner == Owner::Provider;
                    *other != place && counts && limit.settings.is_never_reached(&by.settings, place < *other)
                });
                if let Some((_, by)) = others.next() {
                    told.insert((limit.settings.name.clone(), by.settings.name.clone()));
                }
            }
        }
        for (limit, by) in told {
            self.warnings
                .push(format!("{path}.limits: `{limit}` is never reached: `{by}` lets no more through"));
        }
    }

    /// A reserve that is a part of a limit which no field tells is reckoned from what was seen.
    fn warn_of_vague_reserve(&mut self, routes: &[Arc<Route>], path: &PolicyPath) {
        let vague = |quota: &QuotaSettings| -> Option<String> {
            let part = matches!(quota.reserve, ReserveConfig::Share(share) if share.millionths() > 0);
            let untold = |set: &FieldSet| matches!(&set.left, LeftField::Remaining { limit: None, .. });
            let set = quota.fields.iter().filter(|_| part && quota.learn).find(|set| untold(set))?;
            Some(set.field().to_string())
        };
        let told: BTreeSet<String> =
            routes.iter().filter_map(|route| vague(route.settings.layers.quota.as_ref()?)).collect();
        for field in told {
            self.warnings.push(format!("{path}.quota.reserve: a part of a limit that is not told: no field `limit` stands beside `{field}`, so it is a part of the most that was left; name that field, or write a number"));
        }
    }

    /// What one layer's settings alone cannot tell.
    fn check_together(&mut self, layers: &LayerSettings, config: &ProviderConfig, at: At<'_>) {
        self.told(at, "cost", |mistakes| check_cost(layers, config.cost, mistakes));
        let stale =
            layers.breaker.as_ref().is_some_and(|breaker| breaker.settings.fallback == Fallback::Stale);
        let kept = layers.cache.as_ref().is_some_and(|cache| cache.settings.stale_if_error.is_some());
        if stale && !kept {
            self.told(at, "breaker", |mistakes| {
                mistakes.hint(
                    "fallback",
                    "`fallback: stale` needs answers that are kept beyond their time",
                    "`cache: { stale_if_error: 1h }`, or a static fallback",
                );
            });
        }
    }
}

/// A request that costs more than may go at once would never go.
fn check_cost(layers: &LayerSettings, cost: Option<u32>, mistakes: &mut Mistakes) {
    let Some(cost) = cost else { return };
    if !(1..=MOST_COST).contains(&cost) {
        mistakes.hint("", "not a cost", format!("1 to {MOST_COST}"));
        return;
    }
    let counting = layers.limits.iter().map(|limit| &limit.settings).filter(|limit| limit.unit == Unit::Cost);
    for limit in counting.filter(|limit| !limit.mode.is_shadow()) {
        let (name, rate, back) = (&limit.name, limit.rate, limit.refill() / 1_000);
        if limit.burst < cost {
            let message = format!(
                "a request that costs {cost} could never go: the limit `{name}` lets {} go at once",
                limit.burst
            );
            mistakes.hint("", message, format!("`burst: {cost}` or more at that limit"));
        } else if back < u64::from(cost) {
            let message = format!(
                "less than one request that costs {cost} would go in the time of the rate: of the limit `{name}` come back {back} in it (`rate - burst + 1`)"
            );
            mistakes.hint("", message, burst_for(cost, rate.count()));
        }
    }
}

/// What lets a request of this cost go, and as much come back in the time of the rate.
fn burst_for(cost: u32, rate: u32) -> String {
    match rate.checked_sub(cost - 1).filter(|most| *most >= cost) {
        Some(most) if most == cost => format!("`burst: {cost}` at that limit"),
        Some(most) => format!("a `burst` from {cost} to {most} at that limit"),
        None => format!("that limit has to have a rate of {} or more in its time", u64::from(cost) * 2 - 1),
    }
}

/// Where the hint stands that counts though `retry: off` was written above it.
pub(super) fn place_of_hint(written: Written<'_>) -> Option<Place> {
    let hint = hint_below(written)?.get("hint")?;
    Some(hint.get("header").unwrap_or(hint).place)
}

/// The `retry` below whose hint counts, because the one that counts says nothing of it: `retry: off` was written between, by the one that
/// counts or below it. `hint: null` says something.
fn hint_below<'a>(written: Written<'a>) -> Option<&'a Node> {
    if written.effective.get("retry")?.get("hint").is_some() {
        return None;
    }
    written.below.iter().filter_map(|node| node.get("retry")).find(|retry| retry.get("hint").is_some())
}

/// What is wrong there is told where it is written.
fn read_retry(retry: &Node) -> Option<RetryConfig> {
    salvage::<RetryConfig>(retry, &PolicyPath::root(), &mut Diagnostics::new())
}

/// `retry: off` sends nothing again. Where what lies below knows the provider's hint, one attempt is left of it all: the app's
/// SDK has to hear all the same that it must not repeat what may have acted.
fn hint_alone(written: Written<'_>) -> Option<RetrySettings> {
    let config = hint_below(written).and_then(read_retry)?;
    let settings = RetryConfig { attempts: Some(1), ..config }.compile(&mut Mistakes::default());
    settings.hint.is_some().then_some(settings)
}

/// The place of a layer's mistake below the layer's own path.
pub(super) fn below(path: &PolicyPath, mistake: &Mistake) -> PolicyPath {
    mistake.at.iter().fold(path.clone(), |at, step| match step {
        Step::Key(key) => at.key(key.clone().into_owned()),
        Step::Index(index) => at.index(*index),
    })
}
