import { expect, test } from 'vitest';
import { readJunitReport, readVitestReport } from '../test-reports.ts';

test('a vitest report: tests by status, a file that did not load is one failure', () => {
  const report = {
    testResults: [
      {
        name: '/r/tests/a.test.ts',
        status: 'failed',
        assertionResults: [
          { status: 'passed', fullName: 'x' },
          { status: 'failed', fullName: 'y' },
          { status: 'skipped', fullName: 'z' },
        ],
      },
      {
        name: '/r/tests/b.test.ts',
        status: 'failed',
        assertionResults: [{ status: 'skipped', fullName: 'never began' }],
      },
      { name: '/r/tests/c.test.ts', status: 'passed', assertionResults: [{ status: 'todo', fullName: 'later' }] },
    ],
  };
  expect(readVitestReport(JSON.stringify(report), '/r')).toEqual({
    passed: 1,
    failed: 2,
    skips: ['tests/a.test.ts > z', 'tests/c.test.ts > later'],
  });
});

test('a pytest report: failures, errors and skips are told apart', () => {
  const xml = `<testsuites><testsuite>
    <testcase classname="tests.test_loss" name="test_ok" time="0.1" />
    <testcase classname="tests.test_loss" name="test_bad"><failure message="a &lt; b">trace</failure></testcase>
    <testcase classname="tests.test_gpu" name="test_gpu[&quot;x&quot;]"><skipped type="pytest.skip" message="no GPU" /></testcase>
    <testcase classname="" name="tests.test_import"><error message="collection failure">trace</error></testcase>
  </testsuite></testsuites>`;
  expect(readJunitReport(xml)).toEqual({ passed: 1, failed: 2, skips: ['tests.test_gpu > test_gpu["x"]'] });
});
