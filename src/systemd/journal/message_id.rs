//! One fixed `MESSAGE_ID` for each kind of note (`systemd.journal-fields(7)`), so that
//! `journalctl MESSAGE_ID=…` and catalogs find them whatever the words are. They never change.

use std::fmt;

use crate::supervisor::note::NoteKind;

/// 128 random bits, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId(u128);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The id of a kind.
pub const fn message_id(kind: NoteKind) -> MessageId {
    MessageId(match kind {
        NoteKind::WorkerStarting => 0x9a95da88_935d_404d_98da_5744c1489f47,
        NoteKind::WorkerReady => 0x6e73eadb_01f4_4c05_840d_8531d1b8823f,
        NoteKind::RecycleDue => 0x0290f2f2_4fb0_4229_b7bb_91409ee5b054,
        NoteKind::DrainStarted => 0x0ecc51c4_c6ff_4bd5_86af_c9dd8d90a587,
        NoteKind::DrainFirst => 0x1b31daa2_664a_447f_8c8f_1044836cb71a,
        NoteKind::StopFirst => 0x3ab0da32_6bbc_48a6_9eb2_2139980c0d87,
        NoteKind::WorkerKilling => 0x6c6e0520_4d33_4ffa_9855_dbbd8a8004a3,
        NoteKind::WorkerDied => 0xeaa86105_499f_4ae0_9522_d2c4a2011e9e,
        NoteKind::StartFailed => 0x9bb6c910_e640_4bb1_929b_1ad2d4b75a47,
        NoteKind::Backoff => 0xc4b98bc4_e6e7_40ef_b3c9_fa3c0d1d9e5b,
        NoteKind::ReloadStarted => 0x9692c8b7_2354_40d3_a771_b54d366b0b90,
        NoteKind::ReloadDone => 0xaf383943_dfcf_4fec_afa1_82e355a000bc,
        NoteKind::ReloadUndone => 0x7841069a_4dc7_408a_a3ab_d4a54d29daeb,
        NoteKind::Scaled => 0xec960ca5_5a8f_45eb_a05e_f42be767a429,
        NoteKind::ServiceReady => 0x80404018_540c_45d6_87b3_f174a69544ff,
        NoteKind::ServiceStopping => 0x461573d0_0144_4647_a234_e7d948347d08,
        NoteKind::ServiceStopped => 0xff056431_20b7_40c4_b913_9668dbcea39d,
        NoteKind::NoRequestCount => 0xd7e8ec1c_3b28_4a47_912e_b6c307105738,
        NoteKind::Notice => 0x2f7cdd1b_fbe9_4e4d_913d_670d227fa46e,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [NoteKind; 19] = [
        NoteKind::WorkerStarting,
        NoteKind::WorkerReady,
        NoteKind::RecycleDue,
        NoteKind::DrainStarted,
        NoteKind::DrainFirst,
        NoteKind::StopFirst,
        NoteKind::WorkerKilling,
        NoteKind::WorkerDied,
        NoteKind::StartFailed,
        NoteKind::Backoff,
        NoteKind::ReloadStarted,
        NoteKind::ReloadDone,
        NoteKind::ReloadUndone,
        NoteKind::Scaled,
        NoteKind::ServiceReady,
        NoteKind::ServiceStopping,
        NoteKind::ServiceStopped,
        NoteKind::NoRequestCount,
        NoteKind::Notice,
    ];

    #[test]
    fn every_kind_has_an_id_of_its_own() {
        let mut ids: Vec<_> = ALL.into_iter().map(message_id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ALL.len());
    }

    #[test]
    fn the_documentation_has_the_same_table() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/logs.md")).unwrap();
        for kind in ALL {
            let row = format!("| `{}` | `{}` |", kind.name(), message_id(kind));
            assert!(page.contains(&row), "docs/logs.md lacks {row}");
        }
    }
}
