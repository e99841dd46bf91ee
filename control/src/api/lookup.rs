//! Finds the object that a client refers to: by full id, else by exact name, else by an id prefix
//! that only one object has.

use super::error::{ApiError, ObjectKind};

/// The one object that `query` refers to.
///
/// # Errors
/// [`ApiError::NotFound`], or [`ApiError::Ambiguous`] when several objects have the name or the
/// prefix.
pub(crate) fn find<'a, T>(
    kind: ObjectKind,
    query: &str,
    objects: impl Iterator<Item = &'a T> + Clone,
    id_of: impl Fn(&T) -> &str,
    name_of: impl Fn(&T) -> &str,
) -> Result<&'a T, ApiError> {
    let not_found = || ApiError::NotFound { kind, query: query.to_owned() };
    if query.is_empty() {
        return Err(not_found());
    }
    if let Some(object) = objects.clone().find(|object| id_of(object) == query) {
        return Ok(object);
    }
    let only = |mut matching: Vec<&'a T>, by_name| match matching.len() {
        0 => Ok(None),
        1 => Ok(matching.pop()),
        matches => Err(ApiError::Ambiguous { kind, query: query.to_owned(), matches, by_name }),
    };
    let named = only(objects.clone().filter(|object| name_of(object) == query).collect(), true)?;
    if let Some(object) = named {
        return Ok(object);
    }
    only(objects.filter(|object| id_of(object).starts_with(query)).collect(), false)?.ok_or_else(not_found)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named = (&'static str, &'static str);

    const OBJECTS: [Named; 5] =
        [("abc1", "web"), ("abc2", "db"), ("xyz1", "abc1"), ("xyz2", "abc"), ("qq", "twin")];

    fn check(query: &str, expected: Result<&str, &str>) {
        let seen = find(ObjectKind::Service, query, OBJECTS.iter(), |object| object.0, |object| object.1)
            .map(|object| object.0)
            .map_err(|error| error.to_string());
        assert_eq!(seen, expected.map_err(str::to_owned), "looking for {query:?}");
    }

    #[test]
    fn a_full_id_wins_over_a_name_and_a_name_over_a_prefix() {
        check("abc1", Ok("abc1"));
        check("abc", Ok("xyz2"));
        check("web", Ok("abc1"));
        check("q", Ok("qq"));
    }

    #[test]
    fn missing_and_ambiguous_objects_are_refused_in_swarms_words() {
        check("ab", Err("service ab is ambiguous (2 matches found)"));
        check("nope", Err("service nope not found"));
        check("", Err("service  not found"));
    }

    #[test]
    fn two_objects_of_one_name_are_ambiguous() {
        let twins = [("a", "twin"), ("b", "twin")];
        let seen = find(ObjectKind::Node, "twin", twins.iter(), |object| object.0, |object| object.1);
        assert_eq!(
            seen.map_err(|error| error.to_string()),
            Err("node twin is ambiguous (2 matches found)".to_owned())
        );
    }
}
