//! The limit on a batch's size above which it is known to run out of memory.

/// The number of larger batches that are kept below the limit before one is tried again. It doubles after each try in
/// vain, which costs the forward pass of that batch.
const FIRST_WAIT: u32 = 32;
const LONGEST_WAIT: u32 = 1 << 12;

/// The largest batch, in padded elements, that is tried. The memory that a larger one lacked may have been somebody else's,
/// so it doubles again after a while for as long as larger ones come.
#[derive(Debug)]
pub struct MemoryLimit {
    elements: usize,
    /// The number of larger batches that were kept below the limit since it last changed.
    kept: u32,
    /// The number of larger batches that are kept below the limit before it is raised.
    wait: u32,
    /// Whether the limit was raised, and no batch of such a size has run since.
    is_tried: bool,
}

impl Default for MemoryLimit {
    fn default() -> Self {
        Self {
            elements: usize::MAX,
            kept: 0,
            wait: FIRST_WAIT,
            is_tried: false,
        }
    }
}

impl MemoryLimit {
    /// Whether a batch of this size is to be tried.
    pub fn admits(&mut self, elements: usize) -> bool {
        if elements > self.elements {
            self.kept += 1;
            if self.kept < self.wait {
                return false;
            }
            self.kept = 0;
            self.is_tried = true;
            self.elements = self.elements.saturating_mul(2).max(1);
            tracing::info!(
                elements = self.elements,
                "larger batches are tried again, which had run out of memory"
            );
        }
        elements <= self.elements
    }

    /// Lowers the limit, for a batch of this size ran out of memory.
    pub fn ran_out(&mut self, elements: usize) {
        self.elements = self.elements.min(elements / 2);
        self.kept = 0;
        if std::mem::take(&mut self.is_tried) {
            self.wait = (self.wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Notes that a batch of this size ran.
    pub fn ran(&mut self, elements: usize) {
        if self.is_tried && elements > self.elements / 2 {
            self.is_tried = false;
            self.wait = FIRST_WAIT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of batches of a size that are refused before one is admitted.
    fn refused(memory_limit: &mut MemoryLimit, elements: usize) -> u32 {
        let mut refused = 0;
        while !memory_limit.admits(elements) {
            refused += 1;
        }
        refused
    }

    #[test]
    fn a_size_that_never_fits_is_tried_ever_more_seldom() {
        let mut memory_limit = MemoryLimit::default();
        assert_eq!(refused(&mut memory_limit, 100), 0);
        memory_limit.ran_out(100);
        let waits: Vec<u32> = (0..10)
            .map(|_| {
                let refused = refused(&mut memory_limit, 100);
                memory_limit.ran_out(100);
                refused
            })
            .collect();
        assert_eq!(waits[..3], [31, 63, 127]);
        assert_eq!(waits[8..], [4095, 4095]);
        // A size that fits is never refused.
        assert_eq!(refused(&mut memory_limit, 50), 0);
    }

    #[test]
    fn it_recovers_once_memory_is_there_again() {
        let mut memory_limit = MemoryLimit::default();
        for elements in [800, 400, 200] {
            memory_limit.ran_out(elements);
        }
        // The limit doubles three times, step by step.
        assert_eq!(refused(&mut memory_limit, 800), 3 * 32 - 1);
        memory_limit.ran(800);
        assert_eq!(refused(&mut memory_limit, 800), 0);
        // The next wait is as short as the first was.
        memory_limit.ran_out(800);
        assert_eq!(refused(&mut memory_limit, 800), 31);
    }
}
