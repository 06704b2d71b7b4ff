//! Compares the types of a library with ours, in both directions, and says readably where they differ.
//!
//! abi_stable's own check accepts a library whose types are the same or newer. Since the boundary's history is linear, an older one
//! is as good if *its* types are a prefix of *ours*: so the check runs both ways round.

use halyard_abi::{
    BackendModuleRef,
    loading::{LibHeader, StableAbi, check_layout_compatibility},
};

/// Most differences reported.
const MOST: usize = 8;

/// `Err` holds the differences, each as `path to the field: what (host …, backend …)`.
pub(super) fn check(header: &LibHeader) -> Result<(), Vec<String>> {
    let ours = <BackendModuleRef as StableAbi>::LAYOUT;
    let Some(theirs) = header.layout() else {
        return Err(vec!["the library was built without a description of its types".into()]);
    };
    let Err(newer) = check_layout_compatibility(ours, theirs) else { return Ok(()) };
    let Err(older) = check_layout_compatibility(theirs, ours) else { return Ok(()) };
    tracing::debug!("types as the host expects them:\n{newer}");
    tracing::debug!("types as the backend expects them:\n{older}");
    let (newer, mut older) = (summarise(&newer.to_string()), summarise(&older.to_string()));
    // The direction with fewer differences is the likelier story.
    let mut differences = if newer.len() <= older.len() {
        newer
    } else {
        for d in &mut older {
            d.push_str(" [seen from the backend]");
        }
        older
    };
    differences.truncate(MOST);
    if differences.is_empty() {
        differences
            .push("the types differ (run with --log-level debug for the full comparison)".into());
    }
    Err(differences)
}

/// Reduces abi_stable's text, thousands of lines, to one line a difference.
fn summarise(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let heads: Vec<usize> =
        (0..lines.len()).filter(|&i| lines[i].ends_with("error(s)inside:")).collect();
    let mut found = Vec::new();
    for (n, &head) in heads.iter().enumerate() {
        let end = heads.get(n + 1).copied().unwrap_or(lines.len());
        let section = &lines[head + 1..end];
        let path = field_path(section);
        for (i, line) in section.iter().enumerate() {
            let Some(what) = line.strip_prefix("Error:") else { continue };
            // The line after a label holds the value: "Expected:", value, "Found:", value.
            let value = |k: usize| section.get(i + k).copied().unwrap_or("?");
            let text = format!("{path}: {} (host {}, backend {})", what.trim(), value(2), value(4));
            if !found.contains(&text) {
                found.push(text);
            }
        }
    }
    found
}

/// `Device > supports > OpDesc > tensors`, from the section's lines `field_name:…` and `type:…`.
fn field_path(section: &[&str]) -> String {
    let mut path: Vec<String> = Vec::new();
    for line in section.iter().take_while(|l| !l.starts_with("Layout of expected")) {
        let name = line.strip_prefix("field_name:").or_else(|| line.strip_prefix("type:"));
        // Names of the form `0`, `field_0` are abi_stable's own wrappers.
        let name = name
            .map(str::trim)
            .filter(|n| !n.is_empty() && !n.starts_with("field_") && n.parse::<u32>().is_err());
        if let Some(name) = name
            && path.last().is_none_or(|last| last != name)
        {
            path.push(name.to_owned());
        }
    }
    if path.is_empty() { "the root module".into() } else { path.join(" > ") }
}

#[cfg(test)]
mod tests {
    use super::summarise;

    #[test]
    fn a_difference_is_one_line() {
        let text = "\
            Compared <this> to <other>:\n\
            1 error(s)inside:\n\
            field_name:open\n\
            type:OpDesc\n\
            field_name:rank\n\
            Layout of expected type:\n\
            lots of text\n\
            Error:mismatched type\n\
            Expected:\n\
            u8\n\
            Found:\n\
            u16\n\
            0 error(s)inside:\n";
        assert_eq!(
            summarise(text),
            ["open > OpDesc > rank: mismatched type (host u8, backend u16)"]
        );
    }
}
