//! Names the library as NCCL is named, so that `dlopen("libnccl.so")` finds it once it is loaded by its path.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnccl.so");
}
