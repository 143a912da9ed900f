//! What the host forbids nginx.

use super::super::{
    catalogue::*,
    facts::Facts,
    finding::{About, Finding, Step},
    nginx::Target,
};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(nginx) = &facts.nginx else { return findings };
    let has_tcp = nginx
        .upstreams
        .iter()
        .flat_map(super::super::nginx::Upstream::peers)
        .any(|peer| !peer.starts_with("unix:"))
        || nginx
            .passes
            .iter()
            .any(|pass| matches!(&pass.target, Target::Address(to, _) if !to.starts_with("unix:")));
    if facts.host.selinux == Some(false) && has_tcp {
        findings.push(
            Finding::new(SELINUX, About::Host, "SELinux is enforcing, httpd_can_network_connect is off")
                .with(Step::run("setsebool -P httpd_can_network_connect on")),
        );
    }
    let label = facts.running.as_ref().and_then(|running| running.label.as_deref());
    if let Some(profile) = label.and_then(|label| label.strip_suffix(" (enforce)")) {
        findings.push(Finding::new(APPARMOR, About::Host, format!("profile {profile}, enforced")).with(Step::change(
            "if nginx logs `(13: Permission denied)`: `network inet stream,` and `/run/handoff/** rw,` in that profile, then apparmor_parser -r",
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::{
        super::facts::Running,
        stage::{good, only_in},
    };
    use super::*;

    #[test]
    fn selinux_lets_nginx_connect() {
        let with = |boolean| {
            let mut facts = good();
            facts.host.selinux = boolean;
            facts
        };
        only_in("selinux-boolean", &with(Some(false)), &with(Some(true)));
        only_in("selinux-boolean", &with(Some(false)), &with(None));
    }

    #[test]
    fn an_apparmor_profile_is_noted() {
        let with = |label: &str| Facts {
            running: Some(Running { label: Some(label.into()), ..Running::default() }),
            ..good()
        };
        only_in("apparmor-confined", &with("/usr/sbin/nginx (enforce)"), &with("unconfined"));
        only_in("apparmor-confined", &with("nginx (enforce)"), &with("nginx (complain)"));
    }
}
