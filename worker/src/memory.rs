//! What the process does with memory that it has used.

/// Free memory that is kept rather than given back to the system.
const KEPT: libc::c_int = 256 << 20;
/// Blocks from this size on come from the system and go back to it, each by itself: the most that glibc allows.
const MAPPED: libc::c_int = 32 << 20;

/// Keeps the memory of a forward pass for the next one.
///
/// By default glibc gives it back to the system after each pass and faults it in again, page by page, in the next.
/// This covers libtorch's own allocations, too, which an allocator of Rust's would not.
pub fn keep() {
    #[expect(
        unsafe_code,
        reason = "glibc has no safe way to set it, short of starting the process anew"
    )]
    // SAFETY: it may be called at any time with any numbers, and says whether it took them.
    let taken = unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) & libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED)
    };
    if taken == 0 {
        tracing::warn!("malloc takes no thresholds: forward passes are slower");
    }
}
