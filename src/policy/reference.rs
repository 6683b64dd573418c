//! The JSON Schema of the policy and the reference made from it, `docs/configuration.md`.

use std::fmt::Write;

use serde_json::Value;

use super::schema::PolicyConfig;

/// The JSON Schema (draft 2020-12).
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(PolicyConfig).to_value();
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), "outgate policy".into());
    }
    schema
}

/// The reference: every key with its type and meaning, in the order of the schema.
pub fn markdown() -> String {
    let schema = schema();
    let mut text = String::from(
        "# Configuration\n\nEvery key of the policy. This page is made from the types that read it (`outgate schema --markdown`); a test\nkeeps it current. What the keys mean together stands in the README and in the other documents.\n\n\
         Durations are `250ms`, `10s`, `5m`, `1h`, `1d`; sizes `64KiB`; unknown and duplicate keys, anchors, aliases and merge\nkeys are errors. A key marked *not supported yet* has its place and is refused.\n",
    );
    section(&mut text, &schema, "The whole", &schema);
    let empty = serde_json::Map::new();
    let definitions = schema.get("$defs").and_then(Value::as_object).unwrap_or(&empty);
    for (name, definition) in definitions {
        if definition.get("properties").is_some() {
            section(&mut text, &schema, name, definition);
        }
    }
    text
}

fn section(text: &mut String, root: &Value, name: &str, definition: &Value) {
    let _ = write!(text, "\n## {name}\n\n");
    if let Some(description) = definition.get("description").and_then(Value::as_str)
        && name != "The whole"
    {
        let _ = write!(text, "{}\n\n", one_line(description));
    }
    let _ = writeln!(text, "| key | type | meaning |\n| --- | --- | --- |");
    let empty = serde_json::Map::new();
    for (key, property) in definition.get("properties").and_then(Value::as_object).unwrap_or(&empty) {
        let kind = kind_of(root, property).replace('|', "\\|");
        let meaning = property.get("description").and_then(Value::as_str).map(one_line).unwrap_or_default();
        let _ = writeln!(text, "| `{key}` | {kind} | {} |", meaning.replace('|', "\\|"));
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A short name of a property's type; sections are linked.
fn kind_of(root: &Value, property: &Value) -> String {
    if let Some(reference) = property.get("$ref").and_then(Value::as_str) {
        return reference_kind(root, reference);
    }
    if let Some(options) = property.get("anyOf").or_else(|| property.get("oneOf")).and_then(Value::as_array) {
        let mut kinds: Vec<String> = options
            .iter()
            .filter(|option| option.get("type").and_then(Value::as_str) != Some("null"))
            .map(|option| kind_of(root, option))
            .collect();
        kinds.dedup();
        return kinds.join(" or ");
    }
    if let Some(constant) = property.get("const") {
        return format!("`{}`", constant.as_str().map_or_else(|| constant.to_string(), str::to_owned));
    }
    if let Some(words) = property.get("enum").and_then(Value::as_array) {
        return words
            .iter()
            .filter_map(Value::as_str)
            .map(|word| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(" or ");
    }
    let kind = match property.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(Value::Array(kinds)) => {
            let kinds: Vec<&str> =
                kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect();
            kinds.join(" or ")
        }
        Some(_) | None => "any".to_owned(),
    };
    match kind.as_str() {
        "array" => format!(
            "list of {}",
            property.get("items").map_or_else(|| "any".to_owned(), |items| kind_of(root, items))
        ),
        "object" if property.get("additionalProperties").is_some_and(Value::is_object) => {
            let value =
                property.get("additionalProperties").map_or_else(String::new, |values| kind_of(root, values));
            format!("map of name to {value}")
        }
        "object" if property.get("properties").is_some() => one_of_kind(root, property),
        other => other.to_owned(),
    }
}

/// A map: where it has exactly one key, which is how a choice of kinds is written, that key and what it takes.
fn one_of_kind(root: &Value, property: &Value) -> String {
    let keys = property.get("properties").and_then(Value::as_object);
    let required = property.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    match keys.and_then(|keys| keys.iter().next()) {
        Some((name, kind)) if required == 1 && keys.is_some_and(|keys| keys.len() == 1) => {
            format!("`{name}`: {}", kind_of(root, kind))
        }
        _ => "map".to_owned(),
    }
}

fn reference_kind(root: &Value, reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    let Some(definition) = root.get("$defs").and_then(|definitions| definitions.get(name)) else {
        return name.to_owned();
    };
    if name == "NotSupportedYet" {
        return "*not supported yet*".to_owned();
    }
    if definition.get("properties").is_some() {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    match name {
        "Credential" => credential_kind(root, definition),
        _ => kind_of(root, definition),
    }
}

/// `credential` is a word or a map of one kind; its map is written out.
fn credential_kind(root: &Value, definition: &Value) -> String {
    let map = definition.get("anyOf").and_then(Value::as_array).and_then(|options| options.get(1));
    let empty = serde_json::Map::new();
    let kinds = map.and_then(|map| map.get("properties")).and_then(Value::as_object).unwrap_or(&empty);
    let kinds: Vec<String> =
        kinds.iter().map(|(name, kind)| format!("`{name}`: {}", kind_of(root, kind))).collect();
    format!("`none` or map of one of {}", kinds.join("; "))
}
