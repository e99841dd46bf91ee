//! Warns of fields that Docker doesn't have: they are stored with the object, and have no effect.
//!
//! Go's decoder drops such fields silently. A warning helps a client that misspelled one.

use mesh_state::codec::CodecError;
use serde::Serialize;

use super::error::ApiError;
use crate::docker_json::{Shape, meaning};

/// The most fields named in one warning.
const NAMED_MAX: usize = 8;

/// A warning that names the fields of `object` that are not in `shape`; `None` if there are none.
///
/// # Errors
/// The object can't be encoded as JSON.
pub(super) fn warning(object: &impl Serialize, shape: &Shape) -> Result<Option<String>, ApiError> {
    let value = serde_json::to_value(object).map_err(CodecError::Encode)?;
    let places = meaning::unknown(&value, shape);
    let (named, more) = places.split_at(NAMED_MAX.min(places.len()));
    if named.is_empty() {
        return Ok(None);
    }
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    Ok(Some(format!("unknown fields change nothing, look for a slip: {}{more}", named.join(", "))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::docker_json::shapes::SERVICE_SPEC;

    fn said(spec: &serde_json::Value) -> Option<String> {
        warning(spec, &SERVICE_SPEC).unwrap()
    }

    #[test]
    fn unknown_fields_are_named_up_to_a_bound() {
        assert_eq!(said(&json!({"Name": "web", "Labels": {"x": "y"}})), None);
        let one = said(&json!({"TaskTemplate": {"Imgae": "x"}})).unwrap();
        assert!(one.ends_with("a slip: TaskTemplate.Imgae"), "{one}");
        let many: serde_json::Map<_, _> =
            (0..12).map(|number| (format!("Field{number:02}"), json!(1))).collect();
        let many = said(&many.into()).unwrap();
        assert!(many.ends_with("Field07 and 4 more"), "{many}");
    }
}
