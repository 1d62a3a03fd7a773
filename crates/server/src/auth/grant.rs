//! What a key or a token allows.
use serde::{Deserialize, Serialize, de::Error as _};
use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use super::Limits;

/// Something that a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Ask for answers, and see what may be asked for.
    Chat,
    /// Publish, roll back and delete the variants of one's users.
    Publish,
    /// Train variants of one's users.
    Train,
    /// The operator's endpoints: metrics, files by their path, everybody's variants.
    Admin,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Publish, Self::Train, Self::Admin];

    /// As it is written in the key file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Publish => "publish",
            Self::Train => "train",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

impl FromStr for Right {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|right| right.name() == text);
        found.ok_or_else(|| format!("{text:?} is no right; there are chat, publish, train and admin"))
    }
}

/// Whom a caller may ask for. The base is everybody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    /// Every user: `"*"` in the key file.
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Users {
    fn cover(&self, user: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(users) => users.contains(user),
        }
    }
}

impl Serialize for Users {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => to.serialize_str("*"),
            Self::Only(users) => users.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Users {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Word(String),
            List(BTreeSet<String>),
        }
        match Either::deserialize(from)? {
            Either::Word(word) if word == "*" => Ok(Self::All),
            Either::Word(word) => {
                Err(D::Error::custom(format!("users is {word:?}; write \"*\" or a list of user ids")))
            }
            Either::List(users) => Ok(Self::Only(users)),
        }
    }
}

/// What one caller may do.
#[derive(Debug, Clone)]
pub struct Grant {
    id: Arc<str>,
    users: Users,
    rights: BTreeSet<Right>,
    tenancy: Tenancy,
    limits: Limits,
}

/// How a caller's requests are told apart from others'.
#[derive(Debug, Clone)]
enum Tenancy {
    /// Each user is a tenant: nobody is known, or a back end asks for its users.
    EachUser,
    /// All requests are one tenant's.
    One(Arc<str>),
}

impl Grant {
    /// A server without authentication: everybody may chat with every user; one on its machine may do all.
    pub(super) fn everybody(local: bool) -> Self {
        let rights = if local { Right::ALL.into() } else { BTreeSet::from([Right::Chat]) };
        let limits = Limits::default();
        Self { id: "".into(), users: Users::All, rights, tenancy: Tenancy::EachUser, limits }
    }

    /// A key's. Keys of one named tenant share its turns, its queue and its cache of prompts; without a name, a key for
    /// certain users is a tenant, and of a key for all users each user is one.
    pub(super) fn of_key(
        id: &str,
        users: Users,
        rights: BTreeSet<Right>,
        tenant: Option<&str>,
        limits: Limits,
    ) -> Self {
        let tenancy = match (tenant, &users) {
            (Some(tenant), _) => Tenancy::One(format!("tenant:{tenant}").into()),
            (None, Users::Only(_)) => Tenancy::One(format!("key:{id}").into()),
            (None, Users::All) => Tenancy::EachUser,
        };
        Self { id: id.into(), users, rights, tenancy, limits }
    }

    /// A token's: its subject is its only user and its tenant.
    pub(super) fn of_subject(subject: &str, rights: BTreeSet<Right>) -> Self {
        let id: Arc<str> = format!("subject:{subject}").into();
        let users = Users::Only(BTreeSet::from([subject.to_owned()]));
        Self { tenancy: Tenancy::One(Arc::clone(&id)), id, users, rights, limits: Limits::default() }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn users(&self) -> &Users {
        &self.users
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.id.is_empty()
    }

    pub(super) fn allows(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }

    pub(super) fn covers(&self, user: &str) -> bool {
        self.users.cover(user)
    }

    pub(super) fn tenant(&self, user: Option<&str>) -> Arc<str> {
        match (&self.tenancy, user) {
            (Tenancy::One(tenant), _) => Arc::clone(tenant),
            (Tenancy::EachUser, user) if self.is_anonymous() => user.unwrap_or_default().into(),
            (Tenancy::EachUser, user) => format!("key:{} user:{}", self.id, user.unwrap_or_default()).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_a_star_or_a_list() {
        let read = |text: &str| serde_json::from_str::<Users>(text);
        assert_eq!(read(r#""*""#).ok(), Some(Users::All));
        let both = Users::Only(["ann".to_owned(), "bob".to_owned()].into());
        assert_eq!(read(r#"["bob", "ann"]"#).ok(), Some(both.clone()));
        assert_eq!(serde_json::to_string(&both).expect("text"), r#"["ann","bob"]"#);
        assert!(read(r#""ann""#).is_err(), "a lone name is more likely a mistake than meant");
        let star = read(r#"["*"]"#).expect("a list");
        assert!(!star.cover("ann"), "a star in a list is a user of that name");
    }

    #[test]
    fn a_subject_named_star_is_no_wildcard() {
        let grant = Grant::of_subject("*", BTreeSet::from([Right::Chat]));
        assert!(grant.covers("*") && !grant.covers("ann"));
    }

    #[test]
    fn tenants_of_keys_subjects_and_strangers_never_meet() {
        let key = |id, users, tenant| Grant::of_key(id, users, BTreeSet::new(), tenant, Limits::default());
        let ann = Users::Only(BTreeSet::from(["ann".to_owned()]));
        let tenants = [
            key("ann", ann.clone(), None),
            key("x", ann.clone(), Some("ann")),
            key("x", Users::All, None),
            Grant::of_subject("ann", BTreeSet::new()),
            Grant::everybody(true),
        ]
        .map(|grant| grant.tenant(Some("ann")));
        let distinct: BTreeSet<_> = tenants.iter().collect();
        assert_eq!(distinct.len(), tenants.len(), "{tenants:?}");
        let shared = key("y", ann, Some("ann")).tenant(None);
        assert_eq!(shared, tenants[1], "keys of one tenant share its turns");
    }
}
