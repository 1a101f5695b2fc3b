//! Calls that both sides of the queue make.

use uuid::Uuid;

use crate::{
    JobId,
    call::Call,
    id::EntryId,
    keys::Keys,
    lane::Lane,
    scripts::{DROP, EVICT, GONE_AFTER_MS, MAX_BYTES, MAX_REQUESTS},
};

/// An entry of a jobs stream that is to be removed, with all that is kept for it.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    pub(crate) entry: EntryId,
    /// Bytes of the request's body.
    pub(crate) size: usize,
    /// The request's uuid if its body is in a key of its own, which is removed too.
    pub(crate) large: Option<Uuid>,
}

impl From<&JobId> for Removal {
    fn from(id: &JobId) -> Self {
        Self {
            entry: id.entry,
            size: id.size,
            large: id.is_large.then_some(id.uuid),
        }
    }
}

/// Makes the call that removes entries from a lane's stream: those that the worker `remover` holds, or those whose clients
/// have left, of which the workers that hold them are told.
pub(crate) fn drop_entries<'a>(
    keys: &Keys,
    lane: &Lane,
    remover: Option<&str>,
    entries: impl IntoIterator<Item = &'a Removal> + Clone,
) -> Call {
    let mut names = vec![
        lane.jobs().to_owned(),
        lane.index().to_owned(),
        keys.bytes(),
        keys.lengths(),
        keys.left(),
    ];
    let large = entries
        .clone()
        .into_iter()
        .filter_map(|removal| removal.large);
    names.extend(large.map(|uuid| keys.body(uuid)));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut command = DROP.call(&names, 0);
    command.arg(lane.name()).arg(remover.unwrap_or_default());
    for removal in entries {
        command.arg(removal.entry.to_string()).arg(removal.size);
    }
    Call::of_script(&DROP, command)
}

/// Makes the call that removes a lane's expired entries, and its stream if no worker reads it.
pub(crate) fn evict(keys: &Keys, lane: &Lane) -> Call {
    let names = [lane.jobs(), lane.index(), &keys.bytes(), &keys.lengths()];
    let mut command = EVICT.call(&names, 0);
    command.arg(lane.name()).arg(GONE_AFTER_MS);
    Call::of_script(&EVICT, command)
}

/// Splits items into groups that one call of a script may carry: at most `MAX_REQUESTS` of at most `MAX_BYTES`
/// together, or one larger item by itself.
pub(crate) fn groups<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item);
        if !group.is_empty() && (group.len() == MAX_REQUESTS || bytes + more > MAX_BYTES) {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes += more;
        group.push(item);
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_order_and_bounds() {
        let sizes: Vec<usize> = (0..300)
            .map(|i| if i % 50 == 0 { 700_000 } else { 100 })
            .collect();
        let groups = groups(sizes.clone(), |size| *size);
        assert_eq!(groups.concat(), sizes);
        for group in &groups {
            assert!(group.len() <= MAX_REQUESTS);
            assert!(group.len() == 1 || group.iter().sum::<usize>() <= MAX_BYTES);
        }
    }

    #[test]
    fn one_item_above_the_bound_goes_by_itself() {
        assert_eq!(
            groups(vec![1, 2_000_000, 1], |size| *size),
            [vec![1], vec![2_000_000], vec![1]]
        );
    }
}
