//! Resource versions: which of two states of an object is newer.
//!
//! Since Kubernetes 1.35 resource versions of one resource compare as integers. Text that is no integer compares only for
//! equality.

use std::cmp::Ordering;

/// How `left` compares to `right`, if that can be told.
pub(super) fn compare(left: Option<&str>, right: Option<&str>) -> Option<Ordering> {
    let (left, right) = (left?, right?);
    match (left.parse::<u64>(), right.parse::<u64>()) {
        (Ok(left), Ok(right)) => Some(left.cmp(&right)),
        _ if left == right => Some(Ordering::Equal),
        _ => None,
    }
}

/// Whether `left` is certainly older than `right`.
pub(super) fn is_older(left: Option<&str>, right: Option<&str>) -> bool {
    compare(left, right) == Some(Ordering::Less)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers_and_else_only_for_equality() {
        assert_eq!(compare(Some("9"), Some("10")), Some(Ordering::Less));
        assert_eq!(compare(Some("x1"), Some("x1")), Some(Ordering::Equal));
        assert_eq!(compare(Some("x1"), Some("x2")), None);
        assert_eq!(compare(None, Some("1")), None);
    }
}
