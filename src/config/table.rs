//! The table in `docs/config.md` says what the code does.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Config;

const TABLE: &str = include_str!("../../docs/config.md");

struct Row {
    defaults: [&'static str; 3],
    range: &'static str,
}

/// The rows by the name of the setting.
fn rows() -> BTreeMap<&'static str, Row> {
    let rows = TABLE.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, _, lan, wan, local, range, test] = cells[..] else { panic!("{line}") };
        assert!(test.len() > 4, "no test: {line}");
        (name.trim_matches('`'), Row { defaults: [lan, wan, local], range })
    });
    let all: Vec<_> = rows.collect();
    let (len, rows) = (all.len(), BTreeMap::from_iter(all));
    assert_eq!(rows.len(), len, "a setting has two rows");
    rows
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            map.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// The settings as data, by name; those of `restarts` one by one.
fn settings(config: &Config) -> BTreeMap<String, String> {
    let Value::Object(map) = serde_json::to_value(config).unwrap() else { panic!() };
    let mut all = BTreeMap::new();
    for (name, value) in map {
        match value {
            Value::Object(inner) if name == "restarts" => {
                all.extend(inner.iter().map(|(inner, value)| (format!("{name}.{inner}"), shown(value))));
            }
            value => drop(all.insert(name, shown(&value))),
        }
    }
    all
}

#[test]
fn the_table_names_each_setting_and_its_three_defaults() {
    let rows = rows();
    for (i, config) in [Config::lan(), Config::wan(), Config::local()].iter().enumerate() {
        let told: BTreeMap<String, String> =
            rows.iter().map(|(name, row)| (name.to_string(), row.defaults[i].to_owned())).collect();
        assert_eq!(told, settings(config));
    }
}

/// A configuration in which one setting has another value.
fn with(name: &str, value: Value) -> Config {
    let mut data = match name.split_once('.') {
        Some((outer, inner)) => json!({ outer: { inner: value } }),
        None => json!({ name: value }),
    };
    // Nothing but its own range limits each of these then.
    match name {
        "probe_timeout" => data["probe_interval"] = "0s".into(),
        "probe_interval" => data["probe_timeout"] = "1ms".into(),
        _ => {}
    }
    serde_json::from_value(data).unwrap()
}

#[test]
fn the_ranges_of_the_table_are_those_that_are_allowed() {
    let mut checked = 0;
    for (name, Row { range, .. }) in rows() {
        let Some((min, rest)) = range.split_once(" to ") else { continue };
        let max = rest.split([',', ' ']).next().unwrap();
        let is_span = humantime::parse_duration(max).is_ok() && max.parse::<u64>().is_err();
        let is_list = rest.ends_with("names") || rest.ends_with("networks");
        let (inside, outside) = if is_span {
            let [min, max] = [min, max].map(|text| humantime::parse_duration(text).unwrap());
            let step = std::time::Duration::from_micros(1);
            let written = |span| Value::String(humantime::format_duration(span).to_string());
            let mut inside = vec![written(min), written(max)];
            let mut outside = vec![written(min - step), written(max + step)];
            let zero = written(std::time::Duration::ZERO);
            if rest.contains(", or 0") {
                inside.push(zero)
            } else {
                outside.push(zero)
            }
            (inside, outside)
        } else {
            let [min, max] = [min, max].map(|text| text.parse::<u64>().unwrap());
            let item =
                |i: u64| if rest.ends_with("names") { json!(format!("n{i}")) } else { json!("10.0.0.0/8") };
            let written = |n: u64| if is_list { Value::Array((0..n).map(item).collect()) } else { json!(n) };
            let below = min.checked_sub(1).map(written);
            (vec![written(min), written(max)], below.into_iter().chain([written(max + 1)]).collect())
        };
        for value in inside {
            assert_eq!(with(name, value.clone()).validate(), Ok(()), "{name} = {}", shown(&value));
        }
        for value in outside {
            let error = with(name, value.clone()).validate().expect_err(name);
            assert_eq!(error.field, name, "{}", shown(&value));
        }
        checked += 1;
    }
    assert!(checked > 35, "{checked}");
}
