//! Loads: what each lane gets, however far the lanes' addresses are apart and however many of them load; and loads of parameters.
#![allow(clippy::unwrap_used, reason = "tests")]

mod machine;

use halyard_sim_cuda_exec::FaultKind;
use machine::Machine;
use std::fmt::Write;

/// Words that the buffer has.
const WORDS: u32 = 1024;

/// A kernel whose first `taken` lanes load `count` words each, `distance` bytes apart, from `first` on, and store them.
fn kernel(count: usize, first: u32, distance: u32, taken: u32) -> String {
    let registers: Vec<_> = (0..count).map(|at| format!("%v{at}")).collect();
    let (vector, operand) = match count {
        1 => (String::new(), registers[0].clone()),
        _ => (format!(".v{count}"), format!("{{{}}}", registers.join(", "))),
    };
    let mut text = format!(
        ".version 7.8\n.target sm_80\n.visible .entry k(.param .u64 from, .param .u64 to) {{
        .reg .b32 %t, %v<4>; .reg .b64 %from, %to; .reg .pred %others;
        ld.param.u64 %from, [from]; ld.param.u64 %to, [to]; mov.u32 %t, %tid.x;
        mad.wide.u32 %from, %t, {distance}, %from; mad.wide.u32 %to, %t, 16, %to;
        setp.ge.u32 %others, %t, {taken};\n@%others bra END;
        ld.global{vector}.b32 {operand}, [%from+{first}];\n"
    );
    for (at, register) in registers.iter().enumerate() {
        writeln!(text, "st.global.b32 [%to+{}], {register};", 4 * at).unwrap();
    }
    text + "END:\nret;\n}\n"
}

#[test]
fn lanes_get_what_lies_at_their_addresses() {
    let data: Vec<u32> = (0..WORDS).map(|word| word.wrapping_mul(0x9e37_79b9)).collect();
    for count in [1, 2, 4] {
        let bytes = 4 * u32::try_from(count).unwrap();
        for (first, distance) in [(0, bytes), (16, bytes), (48, 2 * bytes), (32, 0), (0, 64)] {
            for taken in [1, 2, 5, 31, 32] {
                let ptx = kernel(count, first, distance, taken);
                for machine in [Machine::new(&ptx), Machine::new(&ptx).interpreting()] {
                    let (from, to) = (machine.u32s(&data), machine.u32s(&[7; 128]));
                    let args = [from.into(), to.into()];
                    machine.launch("k", ([1; 3], [32, 1, 1], 0), &args).unwrap();
                    let found = machine.read(to, 128, u32::from_le_bytes);
                    for lane in 0..32u32 {
                        let at = usize::try_from((first + lane * distance) / 4).unwrap();
                        let mut wanted = [7; 4];
                        if lane < taken {
                            wanted[..count].copy_from_slice(&data[at..at + count]);
                        }
                        let place = lane as usize * 4;
                        assert_eq!(found[place..place + 4], wanted, "lane {lane} of\n{ptx}");
                    }
                }
            }
        }
    }
}

/// A kernel that loads a field of the structure `p` of 16 bytes through a register, which `way` gives the structure's address.
fn field(way: &str, offset: i32) -> String {
    format!(
        ".version 7.8\n.target sm_80\n.visible .entry k(.param .u64 to, .param .align 8 .b8 p[16]) {{
        .reg .b32 %v<2>; .reg .b64 %to, %at, %p; .reg .pred %all;
        {way}
        ld.param.u64 %to, [to]; ld.param.v2.u32 {{%v0, %v1}}, [%p+{offset}];
        st.global.u32 [%to], %v0; st.global.u32 [%to+4], %v1; ret; }}"
    )
}

#[test]
fn fields_of_a_parameter_are_found_through_registers() {
    let ways = [
        "mov.b64 %p, p;",
        "mov.b64 %at, p; mov.u64 %p, %at;",
        "mov.b64 %p, to; setp.eq.u64 %all, 0, 0; @%all mov.b64 %p, p;",
        "mov.b64 %p, to; mov.b64 %p, p;",
        "bra.uni ON;\nBACK: bra.uni OFF;\nON: mov.b64 %p, p; bra.uni BACK;\nOFF:",
    ];
    for way in ways {
        let machine = Machine::new(&field(way, 8));
        let to = machine.u32s(&[0; 2]);
        let mut p = machine::Arg::from(1u32);
        p.extend([2, 3, 4]);
        machine.launch("k", ([1; 3], [1; 3], 0), &[to.into(), p]).unwrap();
        assert_eq!(machine.read(to, 2, u32::from_le_bytes), [3, 4], "{way}");
    }
}

#[test]
fn loads_outside_the_parameters_end_the_launch() {
    for (way, offset, kind, says) in [
        ("mov.b64 %p, p;", 16, FaultKind::OutOfBounds, "of the parameters at 0x18: there are 24"),
        ("mov.b64 %p, p;", -16, FaultKind::OutOfBounds, "of the parameters at"),
        ("mov.b64 %p, p;", 4, FaultKind::Misaligned, "read of a parameter of 8 bytes at 0xc"),
        // Nothing has given the register an address yet: it has poison.
        (
            "bra.uni ON;\nBACK: mov.b64 %p, p; ret;\nON:",
            0,
            FaultKind::Misaligned,
            "read of a parameter of 8 bytes at 0x7fbadbad7fbadbad",
        ),
    ] {
        let machine = Machine::new(&field(way, offset));
        let to = machine.u32s(&[0; 2]);
        let mut p = machine::Arg::from(1u32);
        p.extend([2, 3, 4]);
        let fault = machine.launch("k", ([1; 3], [1; 3], 0), &[to.into(), p]).unwrap_err();
        assert_eq!(fault.kind, kind, "{fault:?}");
        assert!(fault.text.contains(says), "{fault:?}");
    }
}
