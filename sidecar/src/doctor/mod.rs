//! `handoff doctor`: what in nginx, PM2, the apps and this host loses requests, and what mends it.
//!
//! First everything is looked at ([`gather`]): `nginx -T` as nginx reads it ([`conf`], [`nginx`]), PM2 over its socket, its
//! log ([`pm2_log`]) and the ecosystem file ([`ecosystem`]), the processes, and, if that was asked for, the app itself
//! ([`ask`]), the store ([`store`]) and another nginx ([`binary`]). What came of it are [`facts`]; the [`checks`] see nothing else. What could not be
//! looked at is said, and never taken for well.

pub mod ask;
pub mod binary;
pub mod catalogue;
pub mod checks;
pub mod conf;
pub mod ecosystem;
pub mod facts;
pub mod finding;
pub mod gather;
pub mod nginx;
pub mod pm2_log;
pub mod security;
pub mod store;
pub mod users;

#[cfg(test)]
mod tests {
    use super::catalogue::ALL;
    use std::{collections::BTreeSet, fs, path::Path};

    #[test]
    fn the_catalogue_is_the_documentation() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let docs = fs::read_to_string(root.join("docs/api/doctor.md")).unwrap();
        let row = |kind: &&super::finding::Kind| {
            format!("| `{}` | {} | {} | {} | {} |", kind.id, kind.severity, kind.what, kind.why, kind.mend)
        };
        let wanted: Vec<String> = ALL.iter().map(row).collect();
        let listed: Vec<&str> =
            docs.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() >= 4).collect();
        for (row, kind) in wanted.iter().zip(ALL) {
            assert!(
                listed.contains(&row.as_str()),
                "docs/api/doctor.md lacks the row of {}:\n{row}",
                kind.id
            );
            let file = kind.docs.split('#').next().unwrap();
            assert!(root.join(file).is_file(), "{}: there is no {file}", kind.id);
        }
        for row in listed {
            assert!(wanted.iter().any(|wanted| wanted == row), "no such finding: {row}");
        }
        let ids: BTreeSet<&str> = ALL.iter().map(|kind| kind.id).collect();
        assert_eq!(ids.len(), ALL.len(), "an id is used twice");
    }
}
