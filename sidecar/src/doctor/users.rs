//! Users and their groups, as /etc/passwd and /etc/group have them. Who is known elsewhere only is not known here.

use super::facts::User;
use std::fs;

#[derive(Debug, Default)]
pub struct Users {
    passwd: String,
    group: String,
}

// === impl Users ===

impl Users {
    pub fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    pub fn user(&self, uid: u32) -> Option<User> {
        let (name, gid) = self.entry(uid)?;
        let lists = |line: &&str| {
            line.rsplit(':').next().is_some_and(|all| all.split(',').any(|member| member == name))
        };
        let is_own = |line: &&str| line.split(':').nth(2) == Some(gid);
        let groups = self.group.lines().filter(|line| lists(line) || is_own(line));
        let groups = groups.filter_map(|line| line.split(':').next()).map(str::to_owned).collect();
        Some(User { name: name.to_owned(), uid, groups })
    }

    pub fn group_of(&self, uid: u32) -> Option<u32> {
        self.entry(uid)?.1.parse().ok()
    }

    fn entry(&self, uid: u32) -> Option<(&str, &str)> {
        let uid = uid.to_string();
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, number, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
            (number == uid).then_some((name, gid))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_own_group_and_those_that_list_it() {
        let users = Users {
            passwd: "root:x:0:0:root:/root:/bin/sh\nshop:x:1000:1000::/home/shop:/bin/sh\n".into(),
            group: "root:x:0:\nshop:x:1000:\nhandoff:x:99:www,shop\nother:x:98:shopper\n".into(),
        };
        let shop = users.user(1000).unwrap();
        assert_eq!(shop.name, "shop");
        assert_eq!(shop.groups.into_iter().collect::<Vec<_>>(), ["handoff", "shop"]);
        assert_eq!((users.group_of(1000), users.user(7)), (Some(1000), None));
    }
}
