//! `?fields=a,b`: not all of an answer.

use serde::Serialize;
use serde_json::{Map, Value};

/// The fields that are asked for; all of them if nobody says which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Option<Vec<String>>);

// === impl Fields ===

impl Fields {
    /// Of a query; other parameters mean nothing.
    pub fn of(query: &str) -> Self {
        let asked = query.split('&').find_map(|parameter| parameter.strip_prefix("fields="));
        Self(asked.map(|names| names.split(',').map(str::to_owned).collect()))
    }

    /// Those of an object. None: it has no JSON form, which never happens.
    pub(super) fn pick(&self, of: &impl Serialize) -> Option<Vec<u8>> {
        match &self.0 {
            None => serde_json::to_vec(of).ok(),
            Some(names) => serde_json::to_vec(&keep(serde_json::to_value(of).ok()?, names)).ok(),
        }
    }

    /// Those of each object of a map.
    pub(super) fn pick_each(&self, of: &impl Serialize) -> Option<Vec<u8>> {
        match (&self.0, serde_json::to_value(of).ok()?) {
            (Some(names), Value::Object(map)) => {
                let map: Map<String, Value> =
                    map.into_iter().map(|(key, value)| (key, keep(value, names))).collect();
                serde_json::to_vec(&map).ok()
            }
            _ => serde_json::to_vec(of).ok(),
        }
    }
}

fn keep(mut value: Value, names: &[String]) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|key, _| names.contains(key));
    }
    value
}
