//! Names the library as cuBLASLt is named, so that `dlopen("libcublasLt.so.12")` finds it once it is loaded by its path.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcublasLt.so.12");
}
