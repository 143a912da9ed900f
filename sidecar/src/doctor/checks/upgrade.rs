//! `--nginx PATH`: whether that nginx would start with what is configured.

use super::super::{
    catalogue::*,
    facts::{Facts, Misfit, Unfit, Upgrade, is_our_module},
    finding::{About, Finding, Step},
};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(upgrade) = &facts.upgrade else { return Vec::new() };
    let mut findings: Vec<Finding> = upgrade.misfits.iter().map(|misfit| misfits(upgrade, misfit)).collect();
    if let Some(says) = &upgrade.refused {
        let found = format!("{}: {says}", upgrade.path.display());
        let step = Step::change("mend what it says before you install it");
        findings.push(Finding::new(UPGRADE_REFUSED, About::Nginx, found).with(step));
    }
    findings
}

fn misfits(Upgrade { path, version, .. }: &Upgrade, Misfit { module, why }: &Misfit) -> Finding {
    let path = path.display();
    let found = match why {
        Unfit::Version(made) => format!("{module} is made for nginx {made}, and {path} is nginx {version}"),
        Unfit::Signature => {
            format!("{module} is made for nginx {version}, but built in another way than {path}")
        }
        Unfit::Unloadable(says) => format!("{path} (nginx {version}) cannot load {module}: {says}"),
    };
    let text = match why {
        _ if !is_our_module(module) => format!("install that module for nginx {version}, together with it"),
        Unfit::Signature => format!(
            "make module NGINX_SOURCE_DIR=/path/to/nginx-{version} NGINX_CONFIGURE_ARGS='…', with the arguments that \
             {path} -V prints (less --add-…module)"
        ),
        Unfit::Version(_) | Unfit::Unloadable(_) => format!(
            "install the module for nginx {version} as {module} together with that nginx, and restart: \
             make module NGINX_SOURCE_DIR=/path/to/nginx-{version} builds it"
        ),
    };
    Finding::new(UPGRADE_MODULE, About::Nginx, found).with(Step::change(text))
}

#[cfg(test)]
mod tests {
    use super::super::stage::{good, only_in};
    use super::*;

    fn with(misfits: Vec<Misfit>, refused: Option<&str>) -> Facts {
        let path = "/new/nginx".into();
        let upgrade = Upgrade { path, version: "1.28.3".into(), misfits, refused: refused.map(Into::into) };
        Facts { upgrade: Some(upgrade), ..good() }
    }

    #[test]
    fn an_nginx_that_would_not_start_is_found_before_it_is_installed() {
        let misfit = |module: &str, why| Misfit { module: module.into(), why };
        let ours = "/m/ngx_http_handoff_module.so";
        let right = with(Vec::new(), None);
        let finding = only_in(
            "upgrade-module",
            &with(vec![misfit(ours, Unfit::Version("1.22.1".into()))], None),
            &right,
        );
        assert!(
            finding.found.contains("made for nginx 1.22.1") && finding.found.contains("is nginx 1.28.3"),
            "{}",
            finding.found
        );
        let finding = only_in("upgrade-module", &with(vec![misfit(ours, Unfit::Signature)], None), &right);
        assert!(finding.mend[0].to_string().contains("NGINX_CONFIGURE_ARGS"));
        let other = misfit("/m/ngx_http_echo_module.so", Unfit::Unloadable("no such file".into()));
        let finding = only_in("upgrade-module", &with(vec![other], None), &right);
        assert!(finding.mend[0].to_string().starts_with("install that module"));
        only_in("upgrade-refused", &with(Vec::new(), Some("[emerg] x")), &right);
    }
}
