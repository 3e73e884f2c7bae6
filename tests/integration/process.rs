crate::harness::tests![];
