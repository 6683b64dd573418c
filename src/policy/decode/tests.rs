use std::collections::BTreeMap;
use std::fmt;

use proptest::prelude::*;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::*;
use crate::policy::diagnostic::Rejection;
use crate::policy::tree::{Entry, Place, Sources, Value};
use crate::policy::yaml;

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Policy {
    version: u8,
    providers: BTreeMap<Name, Provider>,
}

#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Name(String);

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Provider {
    hosts: Vec<String>,
    #[serde(default)]
    retry: Retry,
    credential: Option<WordOrKind>,
    scheme: Option<Scheme>,
    #[serde(default)]
    routes: Vec<Route>,
    ratio: Option<f64>,
    max: Option<std::num::NonZeroU32>,
    store: Option<Store>,
    flag: Option<bool>,
    even: Option<Even>,
    pair: Option<(u8, u8)>,
}

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
struct Retry {
    attempts: u32,
    methods: Vec<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Scheme {
    Http,
    Https,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Route {
    path: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Store {
    Env,
    Vault(Vault),
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Vault {
    address: String,
}

/// A type whose own message repeats its input.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
struct Even(String);

impl TryFrom<String> for Even {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.len().is_multiple_of(2) { Ok(Self(text)) } else { Err(format!("{text:?} has an odd length")) }
    }
}

/// `none`, `{bearer: ref}` or `{bearer: [ref, ref]}`.
#[derive(Debug, PartialEq)]
enum WordOrKind {
    None,
    Kind(Kind),
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Bearer(Refs),
    Basic(Route),
}

#[derive(Debug, PartialEq)]
struct Refs(Vec<String>);

impl<'de> Deserialize<'de> for WordOrKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = WordOrKind;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`none` or a map with one key")
            }
            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<WordOrKind, E> {
                if word == "none" {
                    Ok(WordOrKind::None)
                } else {
                    Err(E::custom(format_args!("`{word}` is not a kind")))
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WordOrKind, A::Error> {
                Kind::deserialize(MapAccessDeserializer::new(map)).map(WordOrKind::Kind)
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

impl<'de> Deserialize<'de> for Refs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Refs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a reference or a list of them")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Refs, E> {
                Ok(Refs(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Refs, A::Error> {
                let mut refs = Vec::new();
                while let Some(text) = list.next_element()? {
                    refs.push(text);
                }
                if refs.is_empty() { Err(A::Error::custom("an empty list")) } else { Ok(Refs(refs)) }
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

fn tree(text: &str) -> (Node, Sources) {
    let mut sources = Sources::new();
    let source = sources.add("p.yaml");
    (yaml::parse(text, source, &mut Diagnostics::new()).unwrap(), sources)
}

fn read(text: &str) -> Result<Policy, String> {
    let (node, sources) = tree(text);
    let mut diagnostics = Diagnostics::new();
    let value = decode(&node, &PolicyPath::root(), &mut diagnostics);
    match value {
        Some(policy) if diagnostics.is_empty() => Ok(policy),
        None => Err(Rejection::new(diagnostics, sources).render(false)),
        Some(_) => panic!("a value in spite of mistakes"),
    }
}

/// A mistake in one provider `s`, whose keys are given in flow form; without the position.
fn mistake(provider: &str) -> String {
    let error = read(&format!("providers: {{s: {{{provider}}}}}")).unwrap_err();
    let told =
        |line| if line_of_hint(line) { line } else { line.split_once(": ").map_or(line, |(_, told)| told) };
    error.lines().map(told).collect::<Vec<_>>().join(" | ")
}

fn line_of_hint(line: &str) -> bool {
    line.starts_with("  ")
}

#[test]
fn a_whole_policy() {
    let policy = read(
        "version: 1\nproviders:\n  s:\n    hosts: [a.test, b.test]\n    credential: {bearer: [env:A, env:B]}\n    \
         scheme: https\n    retry: {attempts: 0x3}\n    store: {vault: {address: x}}\n    ratio: 1\n    max: 1\n    \
         pair: [1, 2]\n  t: {hosts: [], credential: none, store: env, scheme: {http: }, ratio: null, flag: true}\n",
    )
    .unwrap();
    let s = &policy.providers[&Name("s".to_owned())];
    assert_eq!(s.hosts, ["a.test", "b.test"]);
    assert_eq!((s.retry.attempts, s.ratio, s.pair), (3, Some(1.0), Some((1, 2))));
    let refs = Refs(vec!["env:A".to_owned(), "env:B".to_owned()]);
    assert_eq!(s.credential, Some(WordOrKind::Kind(Kind::Bearer(refs))));
    assert_eq!(s.store, Some(Store::Vault(Vault { address: "x".to_owned() })));
    let t = &policy.providers[&Name("t".to_owned())];
    assert_eq!(
        (&t.credential, &t.store, &t.scheme),
        (&Some(WordOrKind::None), &Some(Store::Env), &Some(Scheme::Http))
    );
}

#[test]
fn each_mistake_reads_well() {
    for (provider, told) in [
        (
            "hosts: [a], retry: {atempts: 3}",
            "providers.s.retry.atempts: unknown key |   did you mean `attempts`?",
        ),
        (
            "hosts: [a], zzz: 3",
            "providers.s.zzz: unknown key |   possible here: `hosts`, `retry`, `credential`, \
          `scheme`, `routes`, `ratio`, `max`, `store`, `flag`, `even`, `pair`",
        ),
        ("retry: {}", "providers.s: missing key `hosts`"),
        ("hosts: a.test", "providers.s.hosts: expected a list, found the text `a.test`"),
        ("hosts: {a: b}", "providers.s.hosts: expected a list, found a map |   begin each element with `- `"),
        ("hosts: [a, 10]", "providers.s.hosts[1]: expected a text, found the number 10 |   put it in quotes"),
        ("hosts: [a, true]", "providers.s.hosts[1]: expected a text, found `true` |   put it in quotes"),
        (
            "hosts: [a], retry: {attempts: many}",
            "providers.s.retry.attempts: expected a whole number from 0 to \
          4294967295, found the text `many`",
        ),
        (
            "hosts: [a], retry: {attempts: -1}",
            "providers.s.retry.attempts: expected a whole number from 0 to \
          4294967295, found the number -1",
        ),
        (
            "hosts: [a], retry: {attempts: 1.5}",
            "providers.s.retry.attempts: expected a whole number from 0 to \
          4294967295, found the number 1.5",
        ),
        ("hosts: [a], retry: [3]", "providers.s.retry: expected a map of keys, found a list"),
        (
            "hosts: [a], retry: ",
            "providers.s.retry: expected a map of keys, found nothing |   an empty map is written `{}`",
        ),
        ("hosts: [a], max: 0", "providers.s.max: expected a whole number, 1 or above, found the number 0"),
        (
            "hosts: [a], ratio: .inf",
            "providers.s.ratio: this number cannot be used |   write a finite, smaller one",
        ),
        (
            "hosts: [a], flag: yes",
            "providers.s.flag: expected `true` or `false`, found the text `yes` |   write `true`",
        ),
        (
            "hosts: [a], scheme: htps",
            "providers.s.scheme: unknown value: the text `htps` |   did you mean `https`?",
        ),
        (
            "hosts: [a], scheme: 3",
            "providers.s.scheme: expected a word, or a map with one key, found the number 3",
        ),
        (
            "hosts: [a], scheme: {http: 1}",
            "providers.s.scheme.http: no settings may stand here |   write `http` alone",
        ),
        ("hosts: [a], store: vault", "providers.s.store: settings are missing |   write `vault: ...`"),
        ("hosts: [a], store: {vualt: {}}", "providers.s.store.vualt: unknown key |   did you mean `vault`?"),
        (
            "hosts: [a], store: {}",
            "providers.s.store: expected a map with one key, found an empty one |   \
          possible here: `env`, `vault`",
        ),
        (
            "hosts: [a], store: {env: , vault: {address: a}}",
            "providers.s.store.vault: one key too many |   \
          only one key may stand in this map",
        ),
        ("hosts: [a], store: {vault: {}}", "providers.s.store.vault: missing key `address`"),
        (
            "hosts: [a], credential: {bearer: a, basic: {path: a}}",
            "providers.s.credential.basic: one key too many \
          |   only one key may stand in this map",
        ),
        (
            "hosts: [a], credential: {bearr: a}",
            "providers.s.credential.bearr: unknown key |   did you mean `bearer`?",
        ),
        (
            "hosts: [a], credential: [a]",
            "providers.s.credential: expected `none` or a map with one key, found a list",
        ),
        ("hosts: [a], credential: {bearer: []}", "providers.s.credential.bearer: an empty list"),
        ("hosts: [a], pair: [1, 2, 3]", "providers.s.pair[2]: one element too many |   remove it"),
        ("hosts: [a], pair: [1]", "providers.s.pair: expected a tuple of size 2, found 1 elements"),
        ("hosts: [a], even: abc", "providers.s.even: \"abc\" has an odd length"),
        ("hosts: [a], routes: [{path: /a}, {}]", "providers.s.routes[1]: missing key `path`"),
    ] {
        assert_eq!(mistake(provider), told, "{provider}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_each_at_its_place() {
    let error = read(
        "version: 300\nextra: 1\nproviders:\n  s:\n    hosts: [a, 1, 2]\n    retry:\n      atempts: 3\n      methods: GET\n    \
         routes:\n      - pth: /x\n      - path: /y\n      - path: 3\n  t:\n    retry: {}\n",
    )
    .unwrap_err();
    let lines: Vec<&str> = error.lines().filter(|line| line.starts_with("p.yaml")).collect();
    assert_eq!(
        lines,
        [
            "p.yaml:1:10: version: expected a whole number from 0 to 255, found the number 300",
            "p.yaml:2:1: extra: unknown key",
            "p.yaml:5:16: providers.s.hosts[1]: expected a text, found the number 1",
            "p.yaml:5:19: providers.s.hosts[2]: expected a text, found the number 2",
            "p.yaml:7:7: providers.s.retry.atempts: unknown key",
            "p.yaml:8:16: providers.s.retry.methods: expected a list, found the text `GET`",
            // Not: missing key `path`, which only follows.
            "p.yaml:10:9: providers.s.routes[0].pth: unknown key",
            "p.yaml:12:15: providers.s.routes[2].path: expected a text, found the number 3",
            "p.yaml:13:3: providers.t: missing key `hosts`",
        ]
    );
}

#[test]
fn no_secret_is_repeated() {
    let long = "x".repeat(41);
    for provider in [
        "hosts: [a], credential: sk_canary",
        "hosts: [a], credential: {bearer: {sk: canary}}",
        "hosts: [a], credential: {sk_live_canary4711canary4711can: }",
        "hosts: [a], credential: {basic: sk_canary}",
        "hosts: {token: canary}",
        "hosts: {list: [canary]}, even: {password: canary}",
        "hosts: 'postgres://u:canary@db'",
        "hosts: [a], even: 'u:canary@xy'",
        &format!("hosts: canary{long}"),
        &format!("hosts: [a], even: canary{long}"),
        &format!("hosts: [a], scheme: canary{long}"),
        "hosts: [a], credential: {bearer: [4711000, canary]}",
    ] {
        let told = mistake(provider);
        assert!(!told.contains("canary") && !told.contains("4711000"), "{provider}: {told}");
    }
    assert_eq!(mistake("hosts: [a], credential: sk_1"), "providers.s.credential: `…` is not a kind");
}

#[test]
fn the_base_stands_before_every_path() {
    let (node, _) = tree("path: 3\n");
    let mut diagnostics = Diagnostics::new();
    let base = PolicyPath::root().key("presets").index(0);
    assert!(decode::<Route>(&node, &base, &mut diagnostics).is_none());
    assert_eq!(diagnostics.into_sorted()[0].path.to_string(), "presets[0].path");
}

#[test]
fn salvage_gives_the_rest() {
    let (node, _) = tree("providers: {s: {hosts: [a, 1, b]}, t: {}}\n");
    let mut diagnostics = Diagnostics::new();
    let policy: Policy = salvage(&node, &PolicyPath::root(), &mut diagnostics).unwrap();
    assert_eq!(policy.providers.len(), 1);
    assert_eq!(policy.providers[&Name("s".to_owned())].hosts, ["a", "b"]);
    assert_eq!(diagnostics.len(), 2);
}

#[test]
fn the_rounds_are_bounded() {
    let hosts: String = (0..3000).map(|number| format!("{number},")).collect();
    let error = read(&format!("providers: {{s: {{hosts: [{hosts}]}}}}")).unwrap_err();
    assert_eq!(error.lines().filter(|line| line.starts_with("p.yaml")).count(), MAX_DIAGNOSTICS);
}

fn any_value() -> impl Strategy<Value = Value> {
    let word = prop_oneof![Just("none"), Just("https"), Just("vault"), Just("a"), Just("\u{1b}")];
    let number = prop_oneof![
        Just("1"),
        Just("-1"),
        Just(".nan"),
        Just("1e999"),
        Just("0o9"),
        Just("0xfffffffffffffffff")
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        number.prop_map(|text| Value::Number(text.to_owned())),
        word.prop_map(|text| Value::String(text.to_owned())),
    ];
    leaf.prop_recursive(6, 60, 5, |inner| {
        let key = prop::sample::select(vec![
            "version",
            "providers",
            "hosts",
            "retry",
            "attempts",
            "credential",
            "bearer",
            "basic",
            "store",
            "vault",
            "address",
            "routes",
            "path",
            "pair",
            "even",
            "x",
        ]);
        let node = inner.prop_map(node);
        prop_oneof![
            prop::collection::vec(node.clone(), 0..5).prop_map(Value::Sequence),
            prop::collection::btree_map(key, node, 0..5).prop_map(|map| {
                let entry =
                    |(key, value): (&str, Node)| Entry { key: key.to_owned(), key_place: value.place, value };
                Value::Mapping(map.into_iter().map(entry).collect())
            }),
        ]
    })
}

fn node(value: Value) -> Node {
    Node { value, place: Place { source: Sources::new().add("p"), line: 1, column: 1 } }
}

proptest! {
    #[test]
    fn any_tree_gives_a_value_or_a_mistake(value in any_value()) {
        let tree = node(value);
        let mut diagnostics = Diagnostics::new();
        let policy: Option<Policy> = decode(&tree, &PolicyPath::root(), &mut diagnostics);
        prop_assert_eq!(policy.is_some(), diagnostics.is_empty());
        let mut diagnostics = Diagnostics::new();
        let providers: Option<BTreeMap<Name, Provider>> = decode(&tree, &PolicyPath::root(), &mut diagnostics);
        prop_assert_eq!(providers.is_some(), diagnostics.is_empty());
    }
}
