//! A secret or config as control sends it.
//!
//! Invariant: `Debug` never shows its bytes, and they are zeroized when the last holder drops them.

use std::fmt;
use std::sync::Arc;

use mesh_state::dependency::{DependencyKind, TemplateDriver};
use mesh_state::ids::DependencyId;
use mesh_state::proto;
use zeroize::Zeroizing;

/// Secret bytes: zeroized on drop, redacted in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateBytes(Arc<Zeroizing<Vec<u8>>>);

impl PrivateBytes {
    /// Wraps secret bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The raw bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} private bytes", self.0.len())
    }
}

/// The contents of an object that a task refers to, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectData {
    /// The data, as the task's file holds it.
    Data(PrivateBytes),
    /// A template in Go's language: each task's file holds its own expansion.
    Template(PrivateBytes),
    /// The object can't be used, for this reason.
    Refused(String),
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Whether it is a secret or a config.
    pub kind: DependencyKind,
    /// The object's id.
    pub id: DependencyId,
    /// The object's contents.
    pub found: ObjectData,
}

impl Delivered {
    /// Parses a message; `None` if its kind is one that this agent doesn't know.
    pub fn read(message: proto::Dependency) -> Option<Self> {
        let found = match message.found? {
            proto::dependency::Found::Data(data) => {
                let data = PrivateBytes::new(data);
                match (message.template_driver.as_str(), TemplateDriver::named(&message.template_driver)) {
                    ("", _) => ObjectData::Data(data),
                    (_, Some(TemplateDriver::Golang)) => ObjectData::Template(data),
                    (other, None) => ObjectData::Refused(format!(
                        "{} {} uses the template driver {other:?}, which this agent doesn't know: upgrade mesh-agent",
                        message.kind, message.id
                    )),
                }
            }
            proto::dependency::Found::Refusal(reason) => ObjectData::Refused(reason),
        };
        Some(Self { kind: DependencyKind::named(&message.kind)?, id: message.id.into(), found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_and_never_shown() {
        let data = proto::dependency::Found::Data(b"value".to_vec());
        let message = |kind: &str, found| proto::Dependency {
            kind: kind.into(),
            id: "d".into(),
            found,
            ..Default::default()
        };
        let read = Delivered::read(message("secret", Some(data.clone()))).expect("a delivery");
        assert_eq!(read.found, ObjectData::Data(PrivateBytes::new(b"value".to_vec())));
        let shown = format!("{read:?}");
        assert!(shown.contains("5 private bytes") && !shown.contains("118"), "shown as {shown}");
        let driven = |driver: &str| {
            let driver = driver.to_owned();
            let message =
                proto::Dependency { template_driver: driver, ..message("config", Some(data.clone())) };
            Delivered::read(message).expect("a delivery").found
        };
        assert_eq!(driven("golang"), ObjectData::Template(PrivateBytes::new(b"value".to_vec())));
        assert!(
            matches!(driven("later"), ObjectData::Refused(reason) if reason.contains("upgrade mesh-agent"))
        );
        assert_eq!(Delivered::read(message("volume", Some(data))), None, "a kind of a later version");
        assert_eq!(Delivered::read(message("secret", None)), None);
    }
}
