//! Tells the binary where libtorch is: beside it in an image, or where it was built against.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib/libtorch");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{libtorch}/lib");
    }
}
