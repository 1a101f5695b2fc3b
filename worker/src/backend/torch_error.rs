//! The failures of libtorch, sorted by its words.

use tch::TchError;

use super::RunError;

/// The words of libtorch that mean that the device lacks memory.
const OUT_OF_MEMORY: [&str; 4] = [
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];

/// The words that mean that one input is at fault: a library for the device was given what it doesn't take, and did
/// nothing.
const NOT_TAKEN: [&str; 13] = [
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "CUBLAS_STATUS_ARCH_MISMATCH",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_BAD_PARAM",
    "CUDNN_STATUS_INVALID_VALUE",
    "CUDNN_STATUS_ARCH_MISMATCH",
    "CUSOLVER_STATUS_INVALID_VALUE",
    "CUSOLVER_STATUS_NOT_SUPPORTED",
    "CUSPARSE_STATUS_INVALID_VALUE",
    "CUSPARSE_STATUS_NOT_SUPPORTED",
    "CUFFT_INVALID_VALUE",
    "CUFFT_INVALID_SIZE",
];

/// The words that mean that the device or one of its libraries failed. Whether for good, only the device can tell.
const OF_THE_DEVICE: [&str; 8] = [
    "CUDA error",
    "CUDA driver error",
    "cuDNN error",
    "CUDNN_STATUS_",
    "CUBLAS_STATUS_",
    "CUSOLVER_STATUS_",
    "CUSPARSE_STATUS_",
    "cuFFT error",
];

/// Tells the kinds of failure apart by libtorch's own words, the only thing that its C++ exceptions leave of them.
pub fn run_error(error: &TchError) -> RunError {
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
    let gist = gist(&text);
    if says(&OUT_OF_MEMORY) {
        RunError::OutOfMemory(gist)
    } else if says(&OF_THE_DEVICE) && !says(&NOT_TAKEN) {
        RunError::DeviceLost(gist)
    } else {
        RunError::Model(gist)
    }
}

/// The line that says what went wrong, without the tracebacks of TorchScript and C++ around it.
fn gist(text: &str) -> String {
    let marked = text
        .lines()
        .rev()
        .find_map(|line| line.split_once("Error: "));
    let gist = marked.map_or_else(
        || text.lines().find(|line| !line.trim().is_empty()),
        |(_, gist)| Some(gist),
    );
    gist.unwrap_or(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        let error = |text: &str| run_error(&TchError::Torch(text.to_owned()));
        assert!(matches!(
            error("CUDA out of memory. Tried to allocate 2.00 GiB."),
            RunError::OutOfMemory(_)
        ));
        assert!(matches!(
            error("CUDA error: device-side assert triggered"),
            RunError::DeviceLost(_)
        ));
        for words in [
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
            "cuDNN error: CUDNN_STATUS_BAD_PARAM",
            "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
            "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(handle)`",
        ] {
            assert!(matches!(error(words), RunError::Model(_)), "{words}");
        }
        for words in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: invalid configuration argument",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`",
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        ] {
            assert!(matches!(error(words), RunError::DeviceLost(_)), "{words}");
        }
        for words in [
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "CUDA error: out of memory",
        ] {
            assert!(matches!(error(words), RunError::OutOfMemory(_)), "{words}");
        }
        let traceback = "The following operation failed in the TorchScript interpreter.\n\
            Traceback of TorchScript (most recent call last):\nRuntimeError: index out of range in self\n\n";
        assert_eq!(
            error(traceback),
            RunError::Model("index out of range in self".to_owned())
        );
    }
}
