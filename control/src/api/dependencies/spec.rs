//! `SecretSpec` and `ConfigSpec` as a client sends them. Pure.
//!
//! Invariant: the data is wiped when the spec is dropped, and no error quotes it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mesh_state::dependency::{DependencyKind, TemplateDriver};
use mesh_state::spec::{Extra, Labels};
use mesh_state::template::{self, EngineError, TemplateError};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::api::error::ApiError;

/// The most characters of a name, as in Swarm.
const NAME_LENGTH_MAX: usize = 64;

/// The spec of a secret or config in a request.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct DependencySpec {
    /// The name by which services refer to the secret or config.
    pub(super) name: String,
    /// Labels that the user gave the secret or config.
    pub(super) labels: Labels,
    /// Its data in base64; `None` in an update that doesn't change it.
    #[serde(deserialize_with = "private_text")]
    data: Option<Zeroizing<String>>,
    /// A plugin that provides the data.
    driver: Option<Value>,
    /// The template language of the data.
    templating: Option<Value>,
    /// All other fields.
    #[serde(flatten)]
    pub(super) extra: Extra,
}

fn private_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

impl DependencySpec {
    /// Checks name and drivers of a new object.
    ///
    /// # Errors
    /// The first mistake, in Swarm's words where it has any.
    pub(super) fn check(&self, kind: DependencyKind) -> Result<(), ApiError> {
        self.template_driver(kind)?;
        if is_driver(self.driver.as_ref()) {
            return Err(ApiError::NotImplemented(format!(
                "{kind} drivers are not supported by mesh: create the {kind} from its data, without --driver"
            )));
        }
        check_name(&self.name)
    }

    /// The data of a new object.
    ///
    /// # Errors
    /// It is missing, empty, too long, or not base64.
    pub(super) fn checked_data(&self, kind: DependencyKind) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let data = self.data()?.unwrap_or_default();
        let limit = kind.data_limit();
        if data.is_empty() || data.len() >= limit {
            let message = format!("{kind} data must be larger than 0 and less than {limit} bytes");
            return Err(ApiError::Invalid(message));
        }
        if let Some(TemplateDriver::Golang) = self.template_driver(kind)? {
            check_template(kind, &data)?;
        }
        Ok(data)
    }

    /// The template language of the data, if it is a template.
    ///
    /// # Errors
    /// mesh doesn't support the language, or it has options, of which there are none.
    pub(super) fn template_driver(&self, kind: DependencyKind) -> Result<Option<TemplateDriver>, ApiError> {
        let Some(given) = self.templating.as_ref().filter(|given| is_driver(Some(given))) else {
            return Ok(None);
        };
        let name = given.get("Name").and_then(Value::as_str).unwrap_or_default();
        let Some(driver) = TemplateDriver::named(name) else {
            return Err(ApiError::BadRequest(format!(
                "unrecognized template driver {name:?}: create the {kind} with --template-driver golang, or without one"
            )));
        };
        if given.get("Options").and_then(Value::as_object).is_some_and(|options| !options.is_empty()) {
            return Err(ApiError::BadRequest(format!(
                "template driver {name} has no options: remove Templating.Options"
            )));
        }
        Ok(Some(driver))
    }

    /// The data, if any was sent.
    ///
    /// # Errors
    /// It is not base64.
    pub(super) fn data(&self) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        let Some(text) = self.data.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let decoded = BASE64.decode(text.as_bytes());
        let decoded = decoded.map_err(|_| ApiError::BadRequest("Data: illegal base64 data".to_owned()))?;
        Ok(Some(Zeroizing::new(decoded)))
    }

    /// Whether a plugin is to provide the data.
    pub(super) fn has_driver(&self) -> bool {
        is_driver(self.driver.as_ref())
    }
}

/// Checks the syntax of a template, and the functions that it calls. An error in a secret's
/// template gives its position only, as the text around it is part of the secret.
fn check_template(kind: DependencyKind, data: &[u8]) -> Result<(), ApiError> {
    let refused = |reason: String| ApiError::BadRequest(format!("{kind} template: {reason}"));
    let text = std::str::from_utf8(data).map_err(|_| refused("the data is not UTF-8 text".to_owned()))?;
    template::check_payload(text).map_err(|error| match (kind, error) {
        (
            DependencyKind::Secret,
            TemplateError::Engine(EngineError::Parse { line, col, .. } | EngineError::Lex { line, col, .. }),
        ) => refused(format!("syntax error in line {line}, column {col}")),
        (DependencyKind::Secret, TemplateError::Engine(_)) => refused("it can't be parsed".to_owned()),
        (_, error) => refused(error.to_string()),
    })
}

/// Whether a driver is named: Go's clients also send objects with an empty name.
fn is_driver(given: Option<&Value>) -> bool {
    let name = given.and_then(|driver| driver.get("Name")).and_then(Value::as_str);
    name.is_some_and(|name| !name.is_empty())
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::Invalid("name must be provided".to_owned()));
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = [name.bytes().next(), name.bytes().next_back()];
    let good = name.len() <= NAME_LENGTH_MAX
        && name.bytes().all(inner)
        && ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric());
    if good {
        return Ok(());
    }
    Err(ApiError::Invalid(format!(
        "invalid name, only {NAME_LENGTH_MAX} [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(result: Result<(), ApiError>) -> Option<(u16, String)> {
        result.err().map(|error| (error.status().as_u16(), error.to_string()))
    }

    #[test]
    fn names_follow_swarms_rules() {
        for good in ["a", "A-1_b.c", &"x".repeat(64)] {
            assert_eq!(refusal(check_name(good)), None, "{good}");
        }
        for bad in ["-a", "a.", "a b", "a/b", "ä", &"x".repeat(65)] {
            let (status, message) = refusal(check_name(bad)).expect(bad);
            assert!(status == 400 && message.starts_with("invalid name, only 64"), "{bad}: {message}");
        }
        assert_eq!(refusal(check_name("")), Some((400, "name must be provided".to_owned())));
    }

    #[test]
    fn data_has_limits_and_is_never_quoted() {
        let of_length = |kind: DependencyKind, length: usize| {
            let spec = DependencySpec {
                data: Some(Zeroizing::new(BASE64.encode(vec![b'x'; length]))),
                ..DependencySpec::default()
            };
            refusal(spec.checked_data(kind).map(drop))
        };
        for (kind, limit) in [(DependencyKind::Secret, 512_000), (DependencyKind::Config, 1_024_000)] {
            let message = format!("{kind} data must be larger than 0 and less than {limit} bytes");
            assert_eq!(of_length(kind, limit - 1), None, "the longest {kind}");
            assert_eq!(of_length(kind, limit), Some((400, message.clone())), "a {kind} too long");
            assert_eq!(of_length(kind, 0), Some((400, message)), "an empty {kind}");
        }
        let spec: DependencySpec = serde_json::from_value(json!({"Data": "p$ss"})).unwrap();
        assert_eq!(refusal(spec.data().map(drop)), Some((400, "Data: illegal base64 data".to_owned())));
    }

    #[test]
    fn unknown_drivers_are_refused_by_name() {
        let check = |spec: Value| {
            let spec: DependencySpec = serde_json::from_value(spec).unwrap();
            refusal(spec.check(DependencyKind::Secret))
        };
        let (status, message) = check(json!({"Name": "a", "Templating": {"Name": "jinja"}})).unwrap();
        assert!(status == 400 && message.contains("--template-driver golang"), "{status} {message}");
        let options = json!({"Name": "a", "Templating": {"Name": "golang", "Options": {"a": "b"}}});
        let (status, message) = check(options).unwrap();
        assert!(status == 400 && message.contains("no options"), "{status} {message}");
        assert_eq!(check(json!({"Name": "a", "Templating": {"Name": "golang"}})), None);
        let (status, message) = check(json!({"Name": "a", "Driver": {"Name": "vault"}})).unwrap();
        assert!(status == 501 && message.contains("secret drivers are not supported"), "{status} {message}");
        assert_eq!(check(json!({"Name": "a", "Driver": {"Name": ""}, "Templating": null})), None);
    }

    #[test]
    fn a_template_that_can_not_be_parsed_is_refused_and_never_quoted() {
        let check = |kind, data: &[u8]| {
            let templating =
                json!({"Name": "a", "Templating": {"Name": "golang"}, "Data": BASE64.encode(data)});
            let spec: DependencySpec = serde_json::from_value(templating).unwrap();
            refusal(spec.checked_data(kind).map(drop))
        };
        assert_eq!(check(DependencyKind::Secret, br#"pw={{secret "db"}}"#), None);
        let (status, message) = check(DependencyKind::Secret, b"{{hunter2 | nosuch").unwrap();
        assert!(
            status == 400 && message.contains("line 1") && !message.contains("hunter2"),
            "{status} {message}"
        );
        let (status, message) = check(DependencyKind::Config, b"{{if}}").unwrap();
        assert!(status == 400 && message.starts_with("config template: "), "{status} {message}");
        let (_, message) = check(DependencyKind::Config, &[0xff]).unwrap();
        assert_eq!(message, "config template: the data is not UTF-8 text");
    }
}
