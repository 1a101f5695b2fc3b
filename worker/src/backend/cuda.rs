//! The CUDA half of libtorch, which is loaded only where a model runs on a GPU.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::fatal::{Fatal, TerminationReason};

/// Loads libtorch's CUDA half and makes sure that it finds a GPU. Must come before the first tensor.
///
/// The linker drops the library as unused, since nothing refers to it: it registers itself with libtorch when loaded.
pub fn load() -> Result<(), Fatal> {
    let unavailable = |message: String| Fatal::new(TerminationReason::DeviceUnavailable, message);
    #[expect(
        unsafe_code,
        reason = "loading a library runs its initialisers; these are libtorch's own"
    )]
    // SAFETY: libtorch is built to be loaded this way; Python's torch does the same.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|error| unavailable(format!("failed to load libtorch for CUDA: {error}")))?;
    // The library stays for as long as the process lives, for what it registered must.
    std::mem::forget(library);
    if tch::Cuda::is_available() {
        Ok(())
    } else {
        Err(unavailable(
            "device is cuda, but there is no usable GPU".to_owned(),
        ))
    }
}
