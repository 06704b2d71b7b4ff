//! What the processes of ranks tell each other beside the parts of steps.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use halyard_core::{CommId, Metric, MetricKey};

use super::wire::{Fields, FrameWriter, Malformed, VERSION};

/// The first bytes of the first frame.
const MAGIC: u32 = u32::from_le_bytes(*b"HYRK");

/// Kinds of frames beyond these are parts of steps.
pub(crate) const FIRST_PART: u8 = 64;

/// Rank 0 to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToRank {
    Start(Start),
    /// What came of all offers.
    Agreed(Agreed),
    /// The ranks try what they will exchange.
    TryExchanges,
    Load,
    /// Asks for measurements of the device.
    Measure,
    /// No more is to come.
    End,
}

/// What a rank is told first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which rank it is.
    pub rank: usize,
    /// Ranks altogether.
    pub world: usize,
    /// The command line of rank 0's process.
    pub arguments: Vec<OsString>,
}

/// What all ranks do alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) num_blocks: usize,
    pub(crate) max_model_len: usize,
    /// Whether decode steps can be captured; if not, why.
    pub(crate) graphs: Result<(), String>,
    /// The kind of rank 0's device, whose kernels rank 0 verifies for all.
    pub(crate) kind: String,
    /// What the ranks meet by.
    pub(crate) comm: CommId,
    /// The same for trying exchanges.
    pub(crate) trial: CommId,
}

/// Another rank to rank 0.
#[derive(Clone, Debug)]
pub(crate) enum FromRank {
    Offer(Offer),
    Tried(Tried),
    /// Bytes of the files that are loaded.
    Loaded(u64),
    /// Everything is loaded: parts may come.
    Ready,
    Failed(Failed),
    Measured(Vec<Metric>),
}

/// What a rank's device can do and would need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The choices that all ranks must make alike, for people.
    pub(crate) terms: String,
    /// Such as `cuda:1`.
    pub(crate) place: String,
    /// What kind of device it is.
    pub(crate) kind: String,
    /// Most blocks of KV cache, and the longest sequence that fits them.
    pub(crate) num_blocks: usize,
    pub(crate) max_model_len: usize,
    /// Whether decode steps can be captured; if not, why.
    pub(crate) graphs: Result<(), String>,
    /// Bytes of weights, of a block, of graphs.
    pub(crate) weights: u64,
    pub(crate) block: u64,
    pub(crate) graph_bytes: u64,
    /// Bytes of the files that will be read.
    pub(crate) stored: u64,
}

/// How the trial of exchanges went on a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Of all that the rank got: the same on every rank.
    pub digest: u64,
    /// What was wrong, if anything was.
    pub complaint: Option<String>,
}

/// Why a rank ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) message: String,
    /// It failed because the communicator had ended: another rank has the cause.
    pub(crate) by_others: bool,
}

impl ToRank {
    const START: u8 = 1;
    const AGREED: u8 = 2;
    const TRY_EXCHANGES: u8 = 3;
    const LOAD: u8 = 4;
    const MEASURE: u8 = 5;
    const END: u8 = 6;

    pub(crate) fn frame<'a>(&self, writer: &'a mut FrameWriter) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Start(start) => writer.frame(Self::START, |w| start.write(w)),
            Self::Agreed(agreed) => writer.frame(Self::AGREED, |w| agreed.write(w)),
            Self::TryExchanges => writer.frame(Self::TRY_EXCHANGES, |_| {}),
            Self::Load => writer.frame(Self::LOAD, |_| {}),
            Self::Measure => writer.frame(Self::MEASURE, |_| {}),
            Self::End => writer.frame(Self::END, |_| {}),
        }
    }

    pub(crate) fn read((kind, mut fields): (u8, Fields<'_>)) -> Result<Self, Malformed> {
        let this = match kind {
            Self::START => Self::Start(Start::read(&mut fields)?),
            Self::AGREED => Self::Agreed(Agreed::read(&mut fields)?),
            Self::TRY_EXCHANGES => Self::TryExchanges,
            Self::LOAD => Self::Load,
            Self::MEASURE => Self::Measure,
            Self::END => Self::End,
            _ => return Err(Malformed("an unknown kind")),
        };
        fields.end().map(|()| this)
    }
}

impl FromRank {
    const OFFER: u8 = 33;
    const TRIED: u8 = 34;
    const LOADED: u8 = 35;
    const READY: u8 = 36;
    const FAILED: u8 = 37;
    const MEASURED: u8 = 38;

    pub(crate) fn frame<'a>(&self, writer: &'a mut FrameWriter) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Offer(offer) => writer.frame(Self::OFFER, |w| offer.write(w)),
            Self::Tried(tried) => writer.frame(Self::TRIED, |w| {
                w.u64(tried.digest);
                write_problem(w, tried.complaint.as_deref());
            }),
            Self::Loaded(bytes) => writer.frame(Self::LOADED, |w| w.u64(*bytes)),
            Self::Ready => writer.frame(Self::READY, |_| {}),
            Self::Failed(failed) => writer.frame(Self::FAILED, |w| {
                w.bytes(failed.message.as_bytes());
                w.u8(failed.by_others.into());
            }),
            Self::Measured(metrics) => writer.frame(Self::MEASURED, |w| {
                w.size(metrics.len());
                for metric in metrics {
                    w.u32(metric.key.0);
                    w.u32(metric.index);
                    w.u64(metric.value.to_bits());
                }
            }),
        }
    }

    pub(crate) fn read((kind, mut fields): (u8, Fields<'_>)) -> Result<Self, Malformed> {
        let f = &mut fields;
        let this = match kind {
            Self::OFFER => Self::Offer(Offer::read(f)?),
            Self::TRIED => Self::Tried(Tried { digest: f.u64()?, complaint: read_problem(f)? }),
            Self::LOADED => Self::Loaded(f.u64()?),
            Self::READY => Self::Ready,
            Self::FAILED => Self::Failed(Failed { message: f.text()?, by_others: f.flag()? }),
            Self::MEASURED => {
                let count = f.size()?;
                // Collected one by one: the count may be anything.
                let metric = |_| {
                    let (key, index) = (MetricKey(f.u32()?), f.u32()?);
                    Ok(Metric { key, index, value: f64::from_bits(f.u64()?) })
                };
                Self::Measured((0..count).map(metric).collect::<Result<_, Malformed>>()?)
            }
            _ => return Err(Malformed("an unknown kind")),
        };
        fields.end().map(|()| this)
    }
}

impl Start {
    fn write(&self, w: &mut FrameWriter) {
        w.u32(MAGIC);
        w.u32(VERSION);
        w.size(self.rank);
        w.size(self.world);
        w.size(self.arguments.len());
        for argument in &self.arguments {
            w.bytes(argument.as_encoded_bytes());
        }
    }

    fn read(f: &mut Fields<'_>) -> Result<Self, Malformed> {
        if f.u32()? != MAGIC {
            return Err(Malformed("rank 0 is not at the other end"));
        }
        if f.u32()? != VERSION {
            return Err(Malformed("rank 0 is another version of this program"));
        }
        let (rank, world, count) = (f.size()?, f.size()?, f.size()?);
        if rank == 0 || rank >= world {
            return Err(Malformed("a rank that cannot be"));
        }
        let argument = |_| Ok(OsString::from_vec(f.bytes()?.to_vec()));
        let arguments = (0..count).map(argument).collect::<Result<_, Malformed>>()?;
        Ok(Self { rank, world, arguments })
    }
}

impl Agreed {
    fn write(&self, w: &mut FrameWriter) {
        w.size(self.num_blocks);
        w.size(self.max_model_len);
        write_problem(w, self.graphs.as_ref().err().map(String::as_str));
        w.bytes(self.kind.as_bytes());
        w.bytes(self.comm.as_bytes());
        w.bytes(self.trial.as_bytes());
    }

    fn read(f: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            num_blocks: f.size()?,
            max_model_len: f.size()?,
            graphs: read_problem(f)?.map_or(Ok(()), Err),
            kind: f.text()?,
            comm: read_id(f)?,
            trial: read_id(f)?,
        })
    }
}

impl Offer {
    fn write(&self, w: &mut FrameWriter) {
        for text in [&self.terms, &self.place, &self.kind] {
            w.bytes(text.as_bytes());
        }
        w.size(self.num_blocks);
        w.size(self.max_model_len);
        write_problem(w, self.graphs.as_ref().err().map(String::as_str));
        for bytes in [self.weights, self.block, self.graph_bytes, self.stored] {
            w.u64(bytes);
        }
    }

    fn read(f: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            terms: f.text()?,
            place: f.text()?,
            kind: f.text()?,
            num_blocks: f.size()?,
            max_model_len: f.size()?,
            graphs: read_problem(f)?.map_or(Ok(()), Err),
            weights: f.u64()?,
            block: f.u64()?,
            graph_bytes: f.u64()?,
            stored: f.u64()?,
        })
    }
}

fn write_problem(w: &mut FrameWriter, problem: Option<&str>) {
    w.u8(problem.is_some().into());
    w.bytes(problem.unwrap_or_default().as_bytes());
}

fn read_problem(f: &mut Fields<'_>) -> Result<Option<String>, Malformed> {
    let (is_some, text) = (f.flag()?, f.text()?);
    Ok(is_some.then_some(text))
}

fn read_id(f: &mut Fields<'_>) -> Result<CommId, Malformed> {
    CommId::from_bytes(f.bytes()?).map_err(|_| Malformed("an id longer than any"))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::wire::FrameReader, *};

    fn offer() -> Offer {
        Offer {
            terms: "block_size 16".into(),
            place: "cuda:1".into(),
            kind: "cuda H100".into(),
            num_blocks: 7,
            max_model_len: 512,
            graphs: Err("it has none".into()),
            weights: 1,
            block: 2,
            graph_bytes: 3,
            stored: u64::MAX,
        }
    }

    fn to_rank() -> Vec<ToRank> {
        let id = |bytes: &[u8]| CommId::from_bytes(bytes).expect("short");
        let arguments = vec!["halyard".into(), OsString::from_vec(vec![0xff, 0x20])];
        let agreed = Agreed {
            num_blocks: 7,
            max_model_len: 512,
            graphs: Ok(()),
            kind: "cuda H100".into(),
            comm: id(&[1, 2]),
            trial: id(&[]),
        };
        vec![
            ToRank::Start(Start { rank: 1, world: 2, arguments }),
            ToRank::Agreed(agreed),
            ToRank::TryExchanges,
            ToRank::Load,
            ToRank::Measure,
            ToRank::End,
        ]
    }

    fn from_rank() -> Vec<FromRank> {
        let metric = Metric { key: MetricKey::TEMP_C, index: 1, value: 40.5 };
        vec![
            FromRank::Offer(offer()),
            FromRank::Tried(Tried { digest: 9, complaint: Some("é".into()) }),
            FromRank::Loaded(5),
            FromRank::Ready,
            FromRank::Failed(Failed { message: "why".into(), by_others: true }),
            FromRank::Measured(vec![metric, metric]),
        ]
    }

    fn frames() -> Vec<Vec<u8>> {
        let mut writer = FrameWriter::default();
        let mut frames = Vec::new();
        frames.extend(to_rank().iter().map(|m| m.frame(&mut writer).expect("short").to_vec()));
        frames.extend(from_rank().iter().map(|m| m.frame(&mut writer).expect("short").to_vec()));
        frames
    }

    /// What bytes mean to either side; nothing that is no whole frame.
    fn read(mut bytes: &[u8]) -> Option<String> {
        let mut reader = FrameReader::default();
        let frame = reader.next(&mut bytes).ok()??;
        let to_rank = ToRank::read(frame).map(|message| format!("{message:?}"));
        let from_rank = FromRank::read(frame).map(|message| format!("{message:?}"));
        assert!(to_rank.is_err() || from_rank.is_err(), "means two things");
        to_rank.or(from_rank).ok()
    }

    #[test]
    fn messages_come_out_as_they_were_put_in() {
        let sent = to_rank().into_iter().map(|message| format!("{message:?}"));
        let sent = sent.chain(from_rank().into_iter().map(|message| format!("{message:?}")));
        for (frame, sent) in frames().iter().zip(sent) {
            assert_eq!(read(frame), Some(sent));
            for end in 0..frame.len() {
                assert_eq!(read(&frame[..end]), None, "cut off at {end}");
            }
        }
    }

    #[test]
    fn another_version_and_strangers_are_refused() {
        let start = frames().swap_remove(0);
        for (at, why) in [(5, "not at the other end"), (9, "another version")] {
            let mut other = start.clone();
            other[at] ^= 1;
            let mut reader = FrameReader::default();
            let frame = reader.next(&mut &*other).expect("whole").expect("a frame");
            let error = ToRank::read(frame).expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_frame_takes_no_more_memory_than_it_has_bytes() {
        let mut head = vec![0, 0, 0, 15, 1];
        head.extend([0; 100]);
        let info = allocation_counter::measure(|| assert_eq!(read(&head), None));
        assert!(info.bytes_max < 1 << 16, "{} bytes", info.bytes_max);
        assert_eq!(read(&[0, 0, 0, 255, 1]), None, "longer than frames may be");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(
            at in 0_usize..12,
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut frame = frames().swap_remove(at);
            for (index, byte) in changes {
                let index = index.index(frame.len());
                frame[index] = byte;
            }
            read(&frame);
        }

        #[test]
        fn fields_of_any_bytes_are_read_or_refused(kind in any::<u8>(), bytes in vec(any::<u8>(), 0..200)) {
            let mut writer = FrameWriter::default();
            let frame = writer.frame(kind, |w| bytes.iter().for_each(|byte| w.u8(*byte)));
            read(frame.expect("short"));
        }
    }
}
