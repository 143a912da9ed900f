//! Metrics as they are told, and as docs/api/metrics.md lists them.

use crate::place;
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// A family, as it is told or catalogued: its type, its labels, and what it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    pub kind: String,
    pub labels: BTreeSet<String>,
    pub help: String,
}

pub type Families = BTreeMap<String, Family>;

/// The one sample with this name and labels.
pub fn sample(text: &str, series: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.with_context(|| format!("no {series} in {text}"))?.parse().context("a number")
}

pub fn told(text: &str) -> Result<Families> {
    let mut families = Families::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (of, help) = help.split_once(' ').context("a name and its help")?;
            name = of.to_owned();
            families.entry(name.clone()).or_default().help = help.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (_, kind) = kind.split_once(' ').context("a name and its type")?;
            families.entry(name.clone()).or_default().kind = kind.to_owned();
        } else {
            ensure!(line.starts_with(&name), "{line} stands among {name}");
            let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
            let labels =
                labels.map(|(labels, _)| labels.split(',').filter_map(|label| label.split_once("=\"")));
            families
                .entry(name.clone())
                .or_default()
                .labels
                .extend(labels.into_iter().flatten().map(|(name, _)| name.to_owned()));
        }
    }
    Ok(families)
}

/// The tables of docs/api/metrics.md, those with a name that is meant.
pub fn catalogued(is_meant: impl Fn(&str) -> bool) -> Result<Families> {
    let text = fs::read_to_string(place::root().join("docs/api/metrics.md"))?;
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `handoff_"));
    let rows = rows.map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let mut next = || cells.next().map(str::to_owned).context("four columns");
        let name = format!("handoff_{}", next()?.trim_end_matches('`'));
        let kind = next()?;
        let labels = next()?
            .split([',', ' '])
            .filter(|it| !it.is_empty())
            .map(|it| it.trim_matches('`').to_owned())
            .collect();
        Ok((name, Family { kind, labels, help: next()? }))
    });
    let mut families = rows.collect::<Result<Families>>()?;
    families.retain(|name, _| is_meant(name));
    Ok(families)
}
